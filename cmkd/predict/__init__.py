"""Scores of whatever sound people have: files, folders, lists, segments, data sets; on one machine or on many.

`prediction` is the way through: `sources` says what there is to score, `plan` keeps that on the disk in chunks,
`readers` decode ahead of the network, `pieces` are what is claimed, scored and stored, `store` is the output folder,
and `exports` are the tables, label tracks and the page that are made of it.
"""

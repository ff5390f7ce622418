"""Transcripts of corpora that have none."""

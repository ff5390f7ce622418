"""Checkpoints, corpora and pages on the Hub, and their cards."""

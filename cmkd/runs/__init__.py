"""Runs: recipes, folders, stages, folds and seeds."""

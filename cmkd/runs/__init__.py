"""A run: its recipe, its folder, its stages and its folds."""

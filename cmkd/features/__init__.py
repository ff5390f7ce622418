"""Turns sound and words into the inputs of a network, and stores what frozen layers compute from them."""

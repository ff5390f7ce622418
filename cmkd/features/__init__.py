"""From sound and words to what a network is fed with, read once and stored."""

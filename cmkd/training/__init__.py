"""The trainer: a loss over the whole step, on any number of devices."""

"""The trainer, whose loss is that of a whole step on any number of devices."""

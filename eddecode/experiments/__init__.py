"""Trains small pairs of models from scratch, and reproduces the findings about emulated disalignment on them."""

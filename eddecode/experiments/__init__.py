"""Trains small pairs from scratch and tries the findings about emulated disalignment on them."""

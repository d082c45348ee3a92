"""Decoder layers that were recognised by their parts and run as compiled ones."""

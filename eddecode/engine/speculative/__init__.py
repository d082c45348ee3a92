"""Speculative decoding: the drafters, and the speculator that chooses one of them and the length of its draft."""

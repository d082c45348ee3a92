"""Drafters that guess the next tokens, and the statistics that say when guessing pays."""

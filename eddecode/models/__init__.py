"""Checkpoints on disk to models in memory: pairs, ensembles, transfers, and the checks before and after loading."""

"""The findings about emulated disalignment, reproduced from scratch in the lab's world: one file per finding.

Each finding is a claim with a criterion that code evaluates; what does not reproduce is a result too. `run` measures
them, `page` writes them down.
"""

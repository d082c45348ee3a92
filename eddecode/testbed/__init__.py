"""A toy language whose exact probabilities are known, and the bundled pair that was trained on it."""

"""Small helpers that are independent of models and audits."""

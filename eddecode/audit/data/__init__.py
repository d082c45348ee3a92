"""The files that people write for an audit: prompts, transforms of prompts, and human labels."""

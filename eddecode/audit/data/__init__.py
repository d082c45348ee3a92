"""What people write down for an audit: prompt files, transforms of prompts, and human labels."""

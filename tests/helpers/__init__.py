"""What several tests share: tiny models, naive references, scripted samplers and runs."""

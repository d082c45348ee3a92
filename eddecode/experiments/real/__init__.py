"""The paper's protocol on a real pre-trained base: alignment by rejection sampling, reversal by the pair alone."""

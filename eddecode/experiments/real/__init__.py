"""The paper's protocol on a real pre-trained base: alignment by best-of-n sampling, reversal by the pair alone."""

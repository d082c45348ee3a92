"""The models of attacks that need models of their own: merged, ablated, steered, or of two pairs."""

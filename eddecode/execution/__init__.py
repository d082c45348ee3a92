"""Forward passes over key-value caches, for one model or a pair; nothing of sampling or requests."""

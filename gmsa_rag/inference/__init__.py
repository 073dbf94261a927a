"""Compression, prompts and generation: the engine."""

"""Decoders: what turns embedded prompts into text."""

"""Checkpoints of the published GMSA implementation: their files, and their import."""

from gmsa_rag.modeling.published.importing import import_published

__all__ = ["import_published"]

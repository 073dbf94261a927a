"""Benchmarks: each measures our path and its baselines in the same run."""

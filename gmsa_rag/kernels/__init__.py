"""Triton kernels, each beside its plain reference. Importing this package loads neither torch nor Triton."""

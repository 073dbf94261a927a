"""The model of the paper: group merging, layer semantic alignment, the compressor, and its checkpoints."""

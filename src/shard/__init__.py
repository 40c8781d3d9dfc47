"""Shard trains small language models from scratch, end to end, on hardware people own."""

__version__ = "0.1.0"

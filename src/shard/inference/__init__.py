"""Using a model: loading it, sampling from it, timing it."""

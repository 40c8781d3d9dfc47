"""What a model is worth on text it has never seen."""

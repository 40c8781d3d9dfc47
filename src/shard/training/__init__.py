"""Pretraining and annealing: one trainer, a pure schedule, a chunked loss, checkpoints, a sentinel."""

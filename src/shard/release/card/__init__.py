"""The model card of a release: every number in it was written to a file by the run."""

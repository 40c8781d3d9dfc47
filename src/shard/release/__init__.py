"""What leaves the run folder: the bundle, its card, and the way back in."""

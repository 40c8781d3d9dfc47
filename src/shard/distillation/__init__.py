"""Distillation: teachers, the targets that they give, and the loss that follows them."""

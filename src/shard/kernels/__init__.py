"""Kernels in C++ for the CPU, and how the machine's own compiler builds them for its own processor."""

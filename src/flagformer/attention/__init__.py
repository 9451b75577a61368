"""Attention sublayers: projections, caches, prefix keys and values, cores, kernels and gates."""

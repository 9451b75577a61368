"""Kernels of other packages for mixers, each with a test of where it runs; plain torch computes the same."""

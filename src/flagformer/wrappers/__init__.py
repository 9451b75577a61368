"""Whole models, assembled from the core."""

"""Weights of other libraries, carried into flagformer models."""

"""Saved models: weights as safetensors, flags as JSON."""

"""The arguments of a model's call: tokens, positions, memories, prepended embeddings, requested outputs."""

"""Attention: where q, k, v come from, who is seated in front, which pairs meet, and the arithmetic."""

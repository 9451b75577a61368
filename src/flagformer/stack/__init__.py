"""The stack of sublayers: its plan, its sublayers, and what executes them."""

"""The stack of sublayers: plan, sublayers and executors."""

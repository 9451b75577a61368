"""Pure tensor functions: formulas without parameters."""

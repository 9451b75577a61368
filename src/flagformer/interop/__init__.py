"""Conversion of weights and flags of other libraries."""

from flagformer.interop.flag_translator import flags_of_x_transformers
from flagformer.interop.x_transformers import load_x_transformers

__all__ = ["flags_of_x_transformers", "load_x_transformers"]

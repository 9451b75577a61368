"""Reference: everything that is written from the catalogue and must never disagree with it."""

from flagformer.reference.schema import schema
from flagformer.reference.selectors import BASE, Choice, choices, pairs, settings

__all__ = ["BASE", "Choice", "choices", "pairs", "schema", "settings"]

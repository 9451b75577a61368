"""Generated reference: pages, schemas and types that are written from the catalogue."""

from flagformer.lab.reference.schema import schema
from flagformer.lab.reference.selectors import BASE, Choice, choices, pairs, settings

__all__ = ["BASE", "Choice", "choices", "pairs", "schema", "settings"]

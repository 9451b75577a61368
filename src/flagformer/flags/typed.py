"""Generated: bootstrap."""

from typing import Any, TypedDict


class Flags(TypedDict, total=False):
    dim: int

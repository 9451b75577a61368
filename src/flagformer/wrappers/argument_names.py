"""Errors of a call, with the names that its arguments have for the user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Puts the user's names of arguments into every ValueError from inside: `named({"x": "tgt"})`."""
    try:
        yield
    except ValueError as error:
        text = re.sub(r"`(\w+)", lambda match: f"`{names.get(match[1], match[1])}", str(error))
        error.args = (text,)
        raise

"""Error messages with the argument names of the function that the user called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Rename arguments in the message of every ValueError raised inside: `named({"x": "tgt"})`."""
    try:
        yield
    except ValueError as error:
        text = re.sub(r"`(\w+)", lambda match: f"`{names.get(match[1], match[1])}", str(error))
        error.args = (text,)
        raise

"""The option `--allow`: modules from which flags may name components by import path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="MODULE",
        help="A module or package of your own from which flags may name classes, as norm: mylab.norms:MyNorm."
        " It is imported, also from the current directory. Repeat the option for several.",
    ),
]


@contextmanager
def allowing(modules: list[str] | None) -> Iterator[None]:
    """Allow flags to name these modules alone, and find them in the current directory too."""
    from flagformer.flags import allowed_modules

    if modules:
        from flagformer.lab.imports import find_in_working_directory

        find_in_working_directory()
    with allowed_modules(modules or ()):
        yield

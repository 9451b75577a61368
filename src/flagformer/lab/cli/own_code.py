"""The option `--import`, and `flagformer.toml`: modules of the user that a command imports first."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flagformer.lab.cli.errors import clear_errors

Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module of your own to import first, also from the current directory: its components become "
        "flags, and files may name its classes. Repeat the option for several; `flagformer.toml` lists them "
        "too.",
    ),
]


def with_own_code(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option `--import`; it also imports the modules of `flagformer.toml`."""

    @functools.wraps(command)
    def run(*args: Any, own_modules: list[str] | None = None, **kwargs: Any) -> None:
        with clear_errors():
            import_modules(own_modules or [])
        command(*args, **kwargs)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("own_modules", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Import)
    parameters = [*signature.parameters.values(), option]
    # typer reads the signature and the annotations
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def import_modules(modules: list[str]) -> None:
    """Import the modules of `flagformer.toml` in the current directory, then these."""
    if not modules and not Path("flagformer.toml").exists():
        return
    import flagformer  # noqa: F401  # which fills the catalogue of flags
    from flagformer.lab.imports import import_own, modules_of_file

    import_own([*modules_of_file(Path.cwd()), *modules])

"""Components by import path: `"package.module:Class"`, or a mapping of `class` and the class's parameters.

Importing a module executes it. `allowed_modules` limits which modules flags may name.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from flagformer.flags.errors import nearest
from flagformer.flags.spec import Instance, Spec

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
FORM = "an import path `package.module:Class`"
_allowed: ContextVar[tuple[str, ...] | None] = ContextVar("allowed", default=None)
_imported: set[str] = set()  # modules that the user has imported by their names


class ImportPathError(ValueError):
    """A path that names no component. The message is a clause that follows the slot's name and `but`."""


class ModuleNotAllowedError(ValueError):
    """A path whose module the caller does not allow."""


@contextmanager
def allowed_modules(modules: Sequence[str]) -> Iterator[None]:
    """Allow flags to name these modules, and those of these packages, and no others.

    Raises:
        ValueError: for a string in place of a list of module names.
    """
    if isinstance(modules, str) or not all(isinstance(name, str) for name in modules):
        raise ValueError(
            f"`allow` must be a list of module names, such as ['mylab.norms'], but is {modules!r}"
        )
    token = _allowed.set(tuple(modules))
    try:
        yield
    finally:
        _allowed.reset(token)


def allow_imported(module: str) -> None:
    """Allow files to name a module that the user has imported by its name, in this process."""
    _imported.add(module)


@contextmanager
def only_allowed() -> Iterator[None]:
    """Refuse modules that no surrounding `allowed_modules` lists: for flags that a file holds."""
    with allowed_modules(_allowed.get() or ()):
        yield


def is_by_path(value: Any) -> bool:
    """Whether the value of a slot names a component by its path, rightly or wrongly."""
    return isinstance(value, (str, Mapping))


def imported(slot: str, value: str | Mapping[str, Any]) -> Spec | Instance:
    """Return the component of a path, or of a mapping of `class` and parameters.

    Args:
        slot: as typed, for messages.
        value: the path of a class, or of a function for contracts of a single call.

    Raises:
        ImportPathError: for another form, and for a path that cannot be imported.
        ModuleNotAllowedError: for a module that `allowed_modules` does not list.
    """
    path = value if isinstance(value, str) else value.get("class")
    if not isinstance(path, str):
        raise ImportPathError(f"is {dict(value)!r}, which has no `class`, {FORM}")  # type: ignore[arg-type]
    if not PATH.fullmatch(path):
        raise ImportPathError(f"is {path!r}, which is not {FORM}")
    refuse_unless_allowed(slot, path)
    found = look_up(path)
    params = {} if isinstance(value, str) else {name: item for name, item in value.items() if name != "class"}
    if isinstance(found, type):
        return Spec(found, params)
    if not inspect.isroutine(found):
        raise ImportPathError(f"{path} is {found!r:.80}, not a class or a function")
    if params:
        name = next(iter(params))
        raise ImportPathError(f"{path} is a function, which takes no parameters such as `{name}`")
    return Instance(found)


def place_of(found: Any) -> str:
    """` (FILE:LINE)` of the definition of a class or function; empty if it is unknown."""
    try:
        return f" ({inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]})"
    except (TypeError, OSError):
        return ""


def line_of(error: BaseException) -> str:
    """` (FILE:LINE)` of the code of a module that raised an error on its import; empty if none did."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [one for one in frames if "importlib" not in one.filename]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def refuse_unless_allowed(slot: str, path: str) -> None:
    """Raise ModuleNotAllowedError for the path of a module that may not be imported."""
    module, allowed = path.partition(":")[0], _allowed.get()
    if allowed is None:
        return
    if any(module == name or module.startswith(f"{name}.") for name in (*allowed, *_imported)):
        return
    package = module.partition(".")[0]
    raise ModuleNotAllowedError(
        f"`{slot}` is {path!r}, whose module is not allowed: importing it executes its code; if you trust "
        f"it, pass `allow=[{package!r}]` to `flagformer.load`, or `--allow {package}` to the command; around "
        f"`from_pretrained`, `with flagformer.flags.allowed_modules([{package!r}])`"
    )


def look_up(path: str) -> Any:
    """Import the object of a path; ImportPathError if there is none."""
    module_name, _, names = path.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:  # the module's own code may raise anything
        text = f"{type(error).__name__}: {error}{line_of(error)}"
        raise ImportPathError(f"{path!r} cannot be imported: {text}") from error
    for name in names.split("."):
        if not hasattr(found, name):
            owner = found.__name__
            raise ImportPathError(f"{owner} has no {name}{nearest(name, vars(found)).removesuffix('?')}")
        found = getattr(found, name)
    return found

"""Own code by import path: sources, objectives, metrics and components in modules of the user.

Importing a module executes it: files name only modules that the caller allows or has imported by name.
"""

from __future__ import annotations

import inspect
import json
import pickle
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError, core_schema

from flagformer.flags import CATALOGUE, SLOTS, Component
from flagformer.flags.import_paths import (
    PATH,
    ImportPathError,
    ModuleNotAllowedError,
    allow_imported,
    line_of,
    look_up,
    place_of,
    refuse_unless_allowed,
)

FILE = "flagformer.toml"
FORM = "`[flagformer]` with `import`, a list of module names such as ['mylab.norms']"
KNOWN, OWN = "known kind", "own class"  # tags of a union; no key has a space
Kind = TypeVar("Kind")
_imported: list[str] = []


def imported(path: str, key: str, base: type | None = None) -> Any:
    """The class or function of an import path `package.module:Name`.

    Args:
        key: the key that holds the path, for messages.
        base: a class that it must be derived from; None: a function, or a class that can be called.

    Raises:
        ValueError: for another form, a module that is not allowed or cannot be imported, another kind of
            object, and a class with abstract methods; names file and line of a class.
    """
    wanted = "a function" if base is None else f"a subclass of {base.__module__}.{base.__name__}"
    if not PATH.fullmatch(path):
        raise ValueError(
            f"`{key}` must be an import path `package.module:Name` of {wanted}, but is {path!r:.60}"
        )
    try:
        refuse_unless_allowed(key, path)
        found = look_up(path)
    except ModuleNotAllowedError:
        raise
    except ImportPathError as error:
        raise ValueError(f"`{key}` must be an import path of {wanted}, but {error}") from error
    is_right = callable(found) if base is None else isinstance(found, type) and issubclass(found, base)
    if not is_right:
        raise ValueError(f"`{key}` must be {wanted}, but {path}{place_of(found)} is {found!r:.80}")
    if base is not None and (missing := sorted(getattr(found, "__abstractmethods__", ()))):
        raise ValueError(f"`{key}` is {path}{place_of(found)}, which must define {', '.join(missing)}")
    return found


def raised_by(error: BaseException, found: Any) -> str:
    """The file, line and text of an error that own code has raised."""
    file = inspect.getsourcefile(found)
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((one for one in reversed(frames) if one.filename == file), None)
    where = place_of(found) if frame is None else f" ({frame.filename}:{frame.lineno})"
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def find_in_working_directory() -> None:
    """Find modules in the current directory, also in processes that are started later."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def import_own(modules: Sequence[str]) -> None:
    """Import modules of the user and add the components that they declare to the catalogue of flags. Files
    may name their classes from then on.

    Raises:
        ValueError: a module cannot be imported, or declares a component or a flag that exists.
    """
    for name in modules:
        if name in _imported:
            continue
        find_in_working_directory()
        try:
            module = import_module(name)
        except Exception as error:  # the module's own code may raise anything
            raise ValueError(
                f"`import` must name modules, but {name!r} cannot be imported: {type(error).__name__}: "
                f"{error}{line_of(error)} (seen from {Path.cwd()})"
            ) from error
        known = set(CATALOGUE.components)
        declared = [one for one in _components_of(module) if one not in known]
        for one in declared:
            _refuse_taken(one)
            CATALOGUE.fill([one.cls])
        allow_imported(name)
        _imported.append(name)


def modules_of_file(folder: Path) -> list[str]:
    """The modules of `flagformer.toml` in a folder; none without the file.

    Raises:
        ValueError: the file is damaged, or has other contents.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    table = content.get("flagformer")
    names = table.get("import") if isinstance(table, dict) else None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or content.keys() != {"flagformer"} or set(table or ()) != {"import"}:
        raise ValueError(f"{path} must hold {FORM}, but holds {content!r:.80}")
    return list(names or [])


def _components_of(module: ModuleType) -> list[Component]:
    found = [vars(one).get("component") for one in vars(module).values() if isinstance(one, type)]
    return [one for one in found if isinstance(one, Component)]


def _refuse_taken(own: Component) -> None:
    """Raise ValueError for a component of an unknown slot, or with a name or a flag that exists."""
    what = f"{own.cls.__module__}:{own.name}{place_of(own.cls)}"
    if own.slot not in SLOTS:
        raise ValueError(f"{what} must fill a slot, but {own.slot!r} is none; they are {', '.join(SLOTS)}")
    if own.select is None:
        raise ValueError(f"{what} must have a flag that selects it: `@component({own.slot!r}, select=...)`")
    for other in CATALOGUE.selected_by(own.select):
        if other.when is ... or own.when is ... or other.when == own.when:
            raise ValueError(f"{what} must have a flag of its own, but `{own.select}` selects {other.name}")
    taken = next((p.flag.name for p in own.params if p.flag.name in CATALOGUE.names()), None)
    if taken is not None:
        raise ValueError(f"{what} must have flags of its own, but `{taken}` is a flag of the library")


@dataclass(frozen=True)
class ByPath:
    """The type of a block whose `key` holds the import path of a subclass of `base`, for pydantic."""

    base: type[BaseModel]
    key: str

    def __get_pydantic_core_schema__(self, kind: Any, handler: Any) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.with_info_plain_validator_function(self.read, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        path = {"type": "string", "pattern": f"^{PATH.pattern}$", "description": "An import path."}
        return {"type": "object", "properties": {self.key: path}, "required": [self.key]}

    def read(self, value: Any, info: ValidationInfo) -> BaseModel:
        """The instance of a block; types are strict in JSON."""
        if isinstance(value, self.base):
            return value
        try:
            found = imported(value[self.key], self.key, self.base)
            if self.key not in found.model_fields:
                raise ValueError(
                    f"`{self.key}` is {value[self.key]}{place_of(found)}, which must have the field "
                    f"`{self.key}: str`"
                )
        except ValueError as error:
            text = PydanticCustomError("value_error", "Value error, {text}", {"text": str(error)})
            fault = InitErrorDetails(type=text, loc=(self.key,), input=value[self.key])
            raise ValidationError.from_exception_data(self.key, [fault]) from None
        if info.mode == "json":
            return found.model_validate_json(json.dumps(value), strict=True)
        return found.model_validate(value)


def tag_of(key: str) -> Callable[[Any], str]:
    """The discriminator of a union of known kinds and `ByPath`: the tag of a block or an instance."""

    def tag(value: Any) -> str:
        name = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
        return OWN if isinstance(name, str) and ":" in name else KNOWN

    return tag


@dataclass(frozen=True)
class Carried:
    """A value for another process, which finds the same modules and has imported them before it is read."""

    value: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (tuple(_imported), tuple(sys.path), pickle.dumps(self.value))


def carried(value: Kind) -> Kind:
    """The value, as `Carried` if own code is in use. In the other process it is the value itself."""
    return Carried(value) if _imported else value  # type: ignore[return-value]


def _received(modules: tuple[str, ...], path: tuple[str, ...], content: bytes) -> Any:
    sys.path.extend(one for one in path if one not in sys.path)
    import_own(modules)
    return pickle.loads(content)

"""Parses YAML to plain data with the line of every key; rejects errors that YAML allows, as duplicate keys.

Scalars follow YAML 1.2, not PyYAML's 1.1: `1e-3` is a number, and `no`, `on`, `off` are strings.
"""

from __future__ import annotations

import json
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flagformer.flags.others import recognise, recognise_directory
from flagformer.lab.data.formats import HEAD, binary_format
from flagformer.lab.study.config_errors import ConfigError, StudyFileError, key_of, repr_short

# Descriptions of the expected files in messages.
STUDY = "a study file (`name`, `base`, `data`, `train` and `compare`)"
TRAINING = "a training file (`base`, optionally `data` and `train`)"
LARGEST_FILE = 1 << 20
MOST_NODES = 20_000
Route = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars only."""


_Loader.yaml_implicit_resolvers = {}
_FLOAT = r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), None)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), None
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT})$"), None)


@dataclass
class Source:
    """A file's plain data; `lines` maps the route of a key (`("train", "steps")`) to its line."""

    name: str
    data: dict = field(default_factory=dict)
    lines: dict[Route, int] = field(default_factory=dict)
    overrides: dict[Route, str] = field(default_factory=dict)

    def has(self, route: Route) -> bool:
        """Whether the file or an override sets this key."""
        return route in self.lines or route in self.overrides

    def mistake_of(self, message: str) -> ConfigError:
        """An error at the key of `base`, `data` or `evaluate` that begins the message; else at `data`."""
        key = key_of(message)
        for block in ("base", "data", "evaluate"):
            if key in (self.data.get(block) or {}):
                return self.mistake((block, key), message)
        return self.mistake(("data",), message)

    def mistake(self, route: Route, message: str) -> ConfigError:
        """An error at the nearest known position on the route: an override as typed, else `FILE:LINE`.

        A mapping that is not in the file was created by an override of one of its keys.
        """
        if route and route not in self.lines:
            typed = next((typed for key, typed in self.overrides.items() if key[: len(route)] == route), None)
            if typed is not None:
                return ConfigError(1 << 30, f"override `{typed}`", message)
        for end in range(len(route), -1, -1):
            if route[:end] in self.overrides:
                return ConfigError(1 << 30, f"override `{self.overrides[route[:end]]}`", message)
            if route[:end] in self.lines:
                line = self.lines[route[:end]]
                return ConfigError(line, f"{self.name}:{line}", message)
        return ConfigError(1, f"{self.name}:1", message)


def read_source(path: Path, takes: str = STUDY) -> Source:
    """Read and parse one YAML mapping; `takes` describes the expected file in messages.

    Raises:
        StudyFileError: the file is missing, unreadable, too large, not UTF-8, empty, not a mapping, invalid
            YAML, or a file of another library.
    """
    return parse_source(_read_text(path, takes), str(path), takes)


def parse_source(text: str, name: str, takes: str = STUDY) -> Source:
    """Parse the text of a YAML mapping; `name` is the file's name in messages."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        _refuse_other(_as_json(text), name, takes)  # JSON may be indented by tabs, YAML may not
        mark = error.problem_mark or error.context_mark
        detail = " ".join(part for part in (error.context, error.problem) if part)
        raise _error(name, f"is not valid YAML: {detail}", mark.line + 1 if mark else 1) from None
    except yaml.YAMLError as error:
        raise _error(name, f"is not valid YAML: {str(error).splitlines()[0]}", 1) from None
    except RecursionError:
        raise _error(name, f"is nested too deeply; give {takes}", 1) from None
    if node is None:
        raise _error(name, f"is empty; give {takes}", 1)
    source = Source(name)
    reader = _NodeReader(source)
    data = reader.read(node, (), ())
    if not isinstance(data, dict):
        found = "a list" if isinstance(data, list) else f"the single value {repr_short(data)}"
        raise _error(name, f"must contain a mapping of `key: value` lines, but contains {found}", 1)
    _refuse_other(data, name, takes)
    if reader.mistakes:
        raise StudyFileError(reader.mistakes)
    source.data = data
    return source


def parse_value(text: str) -> object:
    """The value of a `key=value` override, parsed as YAML; `yaml.YAMLError` if it is invalid."""
    node = yaml.compose(text, Loader=_Loader)
    if node is None:
        return None
    reader = _NodeReader(Source("override"))
    value = reader.read(node, (), ())
    if reader.mistakes:
        raise yaml.YAMLError(reader.mistakes[0].message)
    return value


class _NodeReader:
    """Builds plain values from YAML nodes, and collects lines and errors."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.mistakes: list[ConfigError] = []
        self.count = 0

    def read(self, node: yaml.Node, route: Route, above: tuple[int, ...]) -> object:
        """The value of the node at `route`; `above` has the ids of its ancestors."""
        self.count += 1
        if id(node) in above or self.count > MOST_NODES:
            raise StudyFileError(
                [self._at(node, "an alias refers to itself, or the file has too many values")]
            )
        self.source.lines.setdefault(route, node.start_mark.line + 1)
        inside = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, route, inside)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*route, str(i)), inside) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, route: Route, inside: tuple[int, ...]) -> dict:
        values: dict[str, object] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(self._at(key_node, "a key must be a string"))
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in first_lines:
                self.mistakes.append(
                    self._at(key_node, f"`{key}` is set twice; first in line {first_lines[key]}")
                )
                continue
            first_lines[key] = line
            self.source.lines[(*route, key)] = line
            values[key] = self.read(value_node, (*route, key), inside)
        return values

    def _scalar(self, node: yaml.Node) -> object:
        tag, text = node.tag.rsplit(":", 1)[-1], node.value
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        try:
            if tag == "int":
                return int(text)
            if tag == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self.mistakes.append(self._at(node, f"{repr_short(text)} is not a valid number"))
            return None
        if tag != "str":
            self.mistakes.append(self._at(node, f"the tag `{node.tag}` is not allowed; write a plain value"))
        return text

    def _at(self, node: yaml.Node, message: str) -> ConfigError:
        line = node.start_mark.line + 1
        return ConfigError(line, f"{self.source.name}:{line}", message)


def _read_text(path: Path, takes: str) -> str:
    name = str(path)
    try:
        if path.is_dir():
            other = recognise_directory(path)
            message = f"is {other.what}; {other.advice}" if other else "is a directory"
            raise _error(name, f"{message}; this command takes {takes}")
        if not stat.S_ISREG(path.stat().st_mode):  # reading a device or pipe may never end
            raise _error(name, "cannot be read: it is a device, pipe or socket; give a regular YAML file")
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        size = max(len(raw), path.stat().st_size)
        if kind := binary_format(raw[:HEAD], size, b"\0" in raw)[0]:
            raise _error(name, f"cannot be read: it is a {kind} file; give {takes}")
        if size > LARGEST_FILE:
            raise _error(name, f"has {size:,} bytes; {takes} has at most {LARGEST_FILE:,}")
    except OSError as error:
        raise _error(name, f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"must be UTF-8 text, but byte {error.start} is 0x{raw[error.start]:02x}"
        raise _error(name, message, raw[: error.start].count(b"\n") + 1) from None


def _refuse_other(data: object, name: str, takes: str) -> None:
    """Raise StudyFileError for a configuration file of another library."""
    if isinstance(data, dict) and (other := recognise(data)):
        raise _error(name, f"is {other.what}, but this command takes {takes}; {other.advice}", 1)


def _as_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _error(name: str, message: str, line: int | None = None) -> StudyFileError:
    """One error of the file `name`, with its line if known."""
    location = name if line is None else f"{name}:{line}"
    return StudyFileError([ConfigError(line or 1, location, message)])

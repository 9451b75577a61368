"""`from` and `preset` of a base: the model that training starts from, or the flags of a published model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flagformer.interop.graft.flags import together
from flagformer.lab.study.config_errors import ConfigError, repr_short
from flagformer.lab.study.source import Route, Source
from flagformer.lab.train.start import TOKENIZER, Start
from flagformer.presets import preset

OF_DATA = ("num_tokens", "max_seq_len")  # flags of a preset that follow from the data


def fill_base(source: Source) -> list[ConfigError]:
    """Replace `preset` by its flags and `from` by its path and digest, in the base of a file.

    A tokenizer that is left out is that of the directory.
    """
    base = source.data.get("base")
    if not isinstance(base, dict) or not {"from", "preset"} & base.keys():
        return []
    if {"from", "preset"} <= base.keys():
        text = "`base.preset` and `base.from` cannot be combined, because both give the flags; leave one out"
        return [source.mistake(("base", "preset"), text)]
    if "from" in base:
        base["from"], mistakes = read_start(source, ("base", "from"), base["from"])
        if not mistakes:
            _fill_tokenizer(source, Path(base["from"]["path"]))
        return mistakes
    try:
        flags = preset(base["preset"])
    except (ValueError, TypeError) as error:
        return [source.mistake(("base", "preset"), str(error).replace("`name`", "`base.preset`"))]
    flags = json.loads(json.dumps({name: value for name, value in flags.items() if name not in OF_DATA}))
    line = source.lines.get(("base", "preset"))
    for name in flags.keys() - base.keys():
        if line is not None:
            source.lines["base", name] = line
    given = {name: value for name, value in base.items() if name != "preset"}
    source.data["base"] = together(flags, given)
    return []


def read_start(source: Source, route: Route, value: object) -> tuple[Any, list[ConfigError]]:
    """The path and the digest of a directory; of a resolved study as they are."""
    name = ".".join(route)
    if isinstance(value, dict) and value.keys() == {"path", "digest"}:
        return value, []
    if not isinstance(value, str):
        text = f"`{name}` must be the directory of a model, but is {repr_short(value)}"
        return value, [source.mistake(route, text)]
    try:
        return Start.of(value).model_dump(), []
    except (ValueError, OSError) as error:
        return value, [source.mistake(route, str(error).replace("`from`", f"`{name}`", 1))]


def fill_variants(source: Source, compare: dict[str, dict[str, Any]]) -> list[ConfigError]:
    """Replace `from` in variants by its path and digest."""
    mistakes = []
    for variant, own in compare.items():
        if "from" in own:
            own["from"], found = read_start(source, ("compare", variant, "from"), own["from"])
            mistakes += found
    return mistakes


def override_of(directory: Path) -> str:
    """The override by which the base starts from a directory."""
    return f"base.from={json.dumps(str(directory))}"


def _fill_tokenizer(source: Source, directory: Path) -> None:
    data, path = source.data.get("data"), directory / TOKENIZER
    if not isinstance(data, dict) or data.get("source") != "tokens":
        return
    if "tokenizer" not in data and path.is_file():
        data["tokenizer"] = str(path)

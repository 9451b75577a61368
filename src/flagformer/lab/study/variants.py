"""Variants of a study file: `compare`, `grid`, `factors` and `tune`, read into the changes of each."""

from __future__ import annotations

import re
from typing import Any

from flagformer.lab.study.blocks import check_block
from flagformer.lab.study.cells import cell_of, point_name, points
from flagformer.lab.study.config_errors import ConfigError, repr_short
from flagformer.lab.study.design import TRAIN, Own, Setting, flat, with_setting
from flagformer.lab.study.source import Route, Source
from flagformer.lab.study.words import suggestion
from flagformer.lab.train.config import TrainConfig

VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+= -]{0,59}")
MOST_VARIANTS = 500
# the budget, and settings without effect on quality: the same for all candidates of a variant
NOT_TUNED = {"steps", "batch_size", "accumulate", "device", "eval_every", "checkpoint_every"}


def read_variants(source: Source, train: TrainConfig | None) -> tuple[dict[str, Own], list[ConfigError]]:
    """The changes of every variant: those of `compare`, each combined with every point of `grid` and with
    every cell of `factors`.

    Args:
        train: the valid `train` block; None if it has errors.
    """
    given = source.data.get("compare")
    if isinstance(given, dict) and len(given) > MOST_VARIANTS:
        text = f"`compare` has {len(given):,} variants; a study has at most {MOST_VARIANTS}; split it"
        return {}, [source.mistake(("compare",), text)]
    compare, mistakes = _compare(source, train)
    for block in ("grid", "factors"):
        settings, found = read_settings(source, block)
        mistakes += found
        if settings and block == "factors" and not mistakes:
            mistakes += _factor_mistakes(source, compare, settings)
            if _in_cells(compare, settings):
                continue
        if settings and not mistakes:
            compare, mistakes = _crossed(source, block, compare, settings, train)
    return compare, mistakes


def _crossed(
    source: Source,
    block: str,
    compare: dict[str, Own],
    settings: dict[str, list[Any]],
    train: TrainConfig | None,
) -> tuple[dict[str, Own], list[ConfigError]]:
    """Every variant at every combination of the settings of `grid` or `factors`."""
    where = points(settings)
    if len(where) * len(compare) > MOST_VARIANTS:
        text = f"`{block}` makes {len(where) * len(compare):,} variants; a study has at most {MOST_VARIANTS}"
        return compare, [source.mistake((block,), text)]
    expanded: dict[str, Own] = {}
    mistakes = []
    for name, own in compare.items():
        for point in where:
            clash = [key for key in point if key in flat(own)]
            if clash:
                text = f"`compare.{name}` and `{block}` both set `{clash[0]}`; leave one out"
                mistakes.append(source.mistake(("compare", name, *clash[0].split(".")), text))
            new_name = point_name(name, point)
            _set_lines(source, block, name, new_name, point)
            expanded[new_name] = with_setting(own, point)
            mistakes += _train_mistakes(source, new_name, expanded[new_name], train)
    return expanded, list(dict.fromkeys(mistakes))


def _in_cells(compare: dict[str, Own], factors: dict[str, list[Any]]) -> bool:
    """Whether `compare` has every variant in every cell, as a resolved study does."""
    cells = [point_name("", point) for point in points(factors)]
    return bool(compare) and all(cell_of(name, cells) for name in compare)


def _factor_mistakes(
    source: Source, compare: dict[str, Own], factors: dict[str, list[Any]]
) -> list[ConfigError]:
    """Errors of a study that has nothing to compare within a cell, or not every variant in every cell."""
    cells = [point_name("", point) for point in points(factors)]
    found = {name: cell_of(name, cells) for name in compare}
    plain = list(dict.fromkeys(name.removesuffix(f" {cell}") for name, cell in found.items()))
    if len(plain) < 2:
        text = "`factors` needs `compare` with at least two variants; `grid` makes variants of one"
        return [source.mistake(("factors",), text)]
    if any(found.values()) and set(compare) != {f"{name} {cell}" for name in plain for cell in cells}:
        text = f"`compare` must have each variant in every cell of `factors` ({', '.join(cells)}), or in none"
        return [source.mistake(("compare",), text)]
    return []


def read_settings(source: Source, block: str) -> tuple[dict[str, list[Any]], list[ConfigError]]:
    """`grid`, `factors` or `tune`: lists of values by flag or training setting (`train.NAME`)."""
    given = source.data.get(block)
    if given is None:
        return {}, []
    if not isinstance(given, dict):
        wanted = "must map flags or training settings to lists, such as `{lr: [3e-4, 1e-3]}`"
        return {}, [source.mistake((block,), f"`{block}` {wanted}, but is {repr_short(given)}")]
    settings: dict[str, list[Any]] = {}
    mistakes = []
    for typed, values in given.items():
        key, error = _key(typed, block)
        if not error and (not isinstance(values, list) or not values):
            error = f"`{block}.{typed}` must be a list of values to try, but is {repr_short(values)}"
        if not error and any(value in values[:index] for index, value in enumerate(values)):
            error = f"`{block}.{typed}` must name each value once, but is {repr_short(values)}"
        if not error and key in settings:
            error = f"`{block}.{typed}` is set twice"
        if error:
            mistakes.append(source.mistake((block, typed), error))
        else:
            settings[key] = values
    return settings, mistakes


def tune_mistakes(
    source: Source, tune: dict[str, list[Any]], compare: dict[str, Own], train: TrainConfig | None
) -> list[ConfigError]:
    """Errors of invalid candidates, and of settings that both a variant and `tune` set."""
    mistakes = []
    for key, values in tune.items():
        typed = key if ("tune", key) in source.lines else key.removeprefix(TRAIN)
        for name, own in compare.items():
            if key in flat(own):
                text = f"`compare.{name}` and `tune` both set `{key}`; leave one out"
                mistakes.append(source.mistake(("compare", name, *key.split(".")), text))
        if train is None or not key.startswith(TRAIN):
            continue
        for index, value in enumerate(values):
            whole = {**train.model_dump(mode="json"), key.removeprefix(TRAIN): value}
            _, found = check_block(source, ("tune", typed, str(index)), TrainConfig, whole)
            route = ("tune", typed, str(index))
            mistakes += [source.mistake(route, mistake.message.replace(f"tune.{typed}.{index}.", "tune."))
                         for mistake in found]  # fmt: skip
    return mistakes


def _compare(source: Source, train: TrainConfig | None) -> tuple[dict[str, Own], list[ConfigError]]:
    value = source.data.get("compare")
    if value is None and source.data.get("grid"):
        return {"": {}}, []
    if "compare" not in source.data:
        return {}, []  # reported as missing elsewhere
    if not isinstance(value, dict) or not value:
        wanted = "must name at least one variant, the baseline first, as `learned: {}`"
        return {}, [source.mistake(("compare",), f"`compare` {wanted}, but is {repr_short(value)}")]
    compare: dict[str, Own] = {}
    mistakes = []
    for name, own in value.items():
        route = ("compare", name)
        if not VARIANT.fullmatch(name):
            wanted = "must be up to 60 letters, digits, spaces and `_.+=-`"
            text = f"a variant's name {wanted}, but is {repr_short(name)}"
            mistakes.append(source.mistake(route, text))
        compare[name], found = read_flags(source, route, {} if own is None else own)
        mistakes += found or _train_mistakes(source, name, compare[name], train)
        if not isinstance(compare[name].get("train", {}), dict):
            del compare[name]["train"]
    return compare, mistakes


def read_flags(
    source: Source, route: tuple[str, ...], value: object
) -> tuple[dict[str, Any], list[ConfigError]]:
    """A mapping of flags; its contents are checked when a model is built."""
    if isinstance(value, dict):
        return dict(value), []
    wanted = "must be a mapping of flags, such as `{rotary_pos_emb: true}`"
    text = f"`{'.'.join(route)}` {wanted}, but is {repr_short(value)}"
    return {}, [source.mistake(route, text)]


def _train_mistakes(source: Source, variant: str, own: Own, train: TrainConfig | None) -> list[ConfigError]:
    """Errors of a variant's training settings, combined with those of the study."""
    if "train" not in own or train is None:
        return []
    route = ("compare", variant, "train")
    if own["train"] is None:
        return []
    if not isinstance(own["train"], dict):
        return check_block(source, route, TrainConfig, own["train"])[1]
    return check_block(source, route, TrainConfig, {**train.model_dump(mode="json"), **own["train"]})[1]


def _key(typed: str, block: str) -> tuple[str, str]:
    """The setting that a key of `grid`, `factors` or `tune` names, and its error."""
    if typed.startswith(("data.", "evaluate.", "objective.")):
        shared = typed.partition(".")[0]
        advice = f"all variants share `{shared}`; write a study for each value"
        return "", f"`{block}.{typed}` cannot vary: {advice}"
    name = typed.removeprefix(TRAIN).removeprefix("base.")
    fields = TrainConfig.model_fields
    if typed.startswith(TRAIN) and name not in fields:
        return "", f"`{block}.{typed}` is not known{suggestion('train', name, fields)}"
    if name not in fields:
        return name, ""
    if block == "tune" and name in NOT_TUNED:
        return "", f"`tune.{typed}` cannot be tuned: every candidate of a variant has the same budget"
    return TRAIN + name, ""


def _set_lines(source: Source, block: str, variant: str, new_name: str, point: Setting) -> None:
    """Set the lines of the keys of an expanded variant: those of the variant and those of the block."""
    records: tuple[dict[Route, Any], ...] = (source.lines, source.overrides)
    for lines in records:
        own = {route[2:]: line for route, line in lines.items() if route[:2] == ("compare", variant)}
        lines.update({("compare", new_name, *route): line for route, line in own.items()})
        for name in point:
            typed = [(block, key) for key in (name, name.removeprefix(TRAIN), "base." + name)]
            line = next((lines[route] for route in [*typed, (block,)] if route in lines), None)
            if line is not None:
                lines["compare", new_name, *name.split(".")] = line
                lines.setdefault(("compare", new_name), line)

"""Variants of a study file: `compare`, `grid` and `tune` read into what each variant changes."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

from flagformer.study.blocks import check_block
from flagformer.study.config_errors import ConfigError, repr_short
from flagformer.study.design import TRAIN, Own, Setting, flat, with_setting
from flagformer.study.source import Route, Source
from flagformer.study.words import suggestion
from flagformer.train.config import TrainConfig

VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+= -]{0,59}")
MOST_VARIANTS = 500
# the budget and what has no effect on quality: alike for all candidates of a variant
NOT_TUNED = {"steps", "batch_size", "accumulate", "device", "eval_every", "checkpoint_every"}


def read_variants(source: Source, train: TrainConfig | None) -> tuple[dict[str, Own], list[ConfigError]]:
    """What every variant changes: those of `compare`, each once for every point of `grid`.

    Args:
        train: the valid `train` block, None where it has mistakes itself.
    """
    given = source.data.get("compare")
    if isinstance(given, dict) and len(given) > MOST_VARIANTS:
        text = f"`compare` holds {len(given):,} variants; a study has at most {MOST_VARIANTS}; split it"
        return {}, [source.mistake(("compare",), text)]
    compare, mistakes = _compare(source, train)
    grid, found = read_settings(source, "grid")
    mistakes += found
    if not grid or mistakes:
        return compare, mistakes
    points = [dict(zip(grid, values)) for values in product(*grid.values())]
    if len(points) * len(compare) > MOST_VARIANTS:
        text = f"`grid` makes {len(points) * len(compare):,} variants; a study has at most {MOST_VARIANTS}"
        return compare, [source.mistake(("grid",), text)]
    spread: dict[str, Own] = {}
    for name, own in compare.items():
        for point in points:
            clash = [key for key in point if key in flat(own)]
            if clash:
                text = f"`compare.{name}` and `grid` both set `{clash[0]}`; leave one out"
                mistakes.append(source.mistake(("compare", name, *clash[0].split(".")), text))
            fresh = point_name(name, point)
            _place(source, name, fresh, point)
            spread[fresh] = with_setting(own, point)
            mistakes += _train_mistakes(source, fresh, spread[fresh], train)
    return spread, list(dict.fromkeys(mistakes))


def read_settings(source: Source, block: str) -> tuple[dict[str, list[Any]], list[ConfigError]]:
    """`grid` or `tune`: a list of values for each flag or training setting, the latter as `train.NAME`."""
    given = source.data.get(block)
    if given is None:
        return {}, []
    if not isinstance(given, dict):
        wanted = "must map flags or training settings to lists, such as `{lr: [3e-4, 1e-3]}`"
        return {}, [source.mistake((block,), f"`{block}` {wanted}, but is {repr_short(given)}")]
    settings: dict[str, list[Any]] = {}
    mistakes = []
    for typed, values in given.items():
        key, trouble = _key(typed, block)
        if not trouble and (not isinstance(values, list) or not values):
            trouble = f"`{block}.{typed}` must be a list of values to try, but is {repr_short(values)}"
        if not trouble and any(value in values[:place] for place, value in enumerate(values)):
            trouble = f"`{block}.{typed}` must name each value once, but is {repr_short(values)}"
        if not trouble and key in settings:
            trouble = f"`{block}.{typed}` stands here a second time"
        if trouble:
            mistakes.append(source.mistake((block, typed), trouble))
        else:
            settings[key] = values
    return settings, mistakes


def tune_mistakes(
    source: Source, tune: dict[str, list[Any]], compare: dict[str, Own], train: TrainConfig | None
) -> list[ConfigError]:
    """Candidates that cannot be, and settings that a variant fixes and `tune` tries."""
    mistakes = []
    for key, values in tune.items():
        typed = key if ("tune", key) in source.lines else key.removeprefix(TRAIN)
        for name, own in compare.items():
            if key in flat(own):
                text = f"`compare.{name}` and `tune` both set `{key}`; leave one out"
                mistakes.append(source.mistake(("compare", name, *key.split(".")), text))
        if train is None or not key.startswith(TRAIN):
            continue
        for place, value in enumerate(values):
            whole = {**train.model_dump(mode="json"), key.removeprefix(TRAIN): value}
            _, found = check_block(source, ("tune", typed, str(place)), TrainConfig, whole)
            route = ("tune", typed, str(place))
            mistakes += [source.mistake(route, mistake.message.replace(f"tune.{typed}.{place}.", "tune."))
                         for mistake in found]  # fmt: skip
    return mistakes


def point_name(variant: str, point: Setting) -> str:
    """`rotary depth=2`: a variant at a point of the grid."""
    words = [f"{key.removeprefix(TRAIN)}={_word(value)}" for key, value in point.items()]
    return " ".join([variant, *words] if variant else words)


def _word(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-")


def _compare(source: Source, train: TrainConfig | None) -> tuple[dict[str, Own], list[ConfigError]]:
    value = source.data.get("compare")
    if value is None and source.data.get("grid"):
        return {"": {}}, []
    if "compare" not in source.data:
        return {}, []  # said to be missing elsewhere
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
    """A mapping of flags; what is in it is checked when a model is built of it."""
    if isinstance(value, dict):
        return dict(value), []
    wanted = "must be a mapping of flags, such as `{rotary_pos_emb: true}`"
    text = f"`{'.'.join(route)}` {wanted}, but is {repr_short(value)}"
    return {}, [source.mistake(route, text)]


def _train_mistakes(source: Source, variant: str, own: Own, train: TrainConfig | None) -> list[ConfigError]:
    """What is wrong with the training settings of one variant, in the frame of those of the study."""
    if "train" not in own or train is None:
        return []
    route = ("compare", variant, "train")
    if own["train"] is None:
        return []
    if not isinstance(own["train"], dict):
        return check_block(source, route, TrainConfig, own["train"])[1]
    return check_block(source, route, TrainConfig, {**train.model_dump(mode="json"), **own["train"]})[1]


def _key(typed: str, block: str) -> tuple[str, str]:
    """The setting that a key of `grid` or `tune` names, and what is wrong with it."""
    name = typed.removeprefix(TRAIN).removeprefix("base.")
    fields = TrainConfig.model_fields
    if typed.startswith(TRAIN) and name not in fields:
        return "", f"`{block}.{typed}` is not known{suggestion('train', name, fields)}"
    if name not in fields:
        return name, ""
    if block == "tune" and name in NOT_TUNED:
        return "", f"`tune.{typed}` cannot be tuned: every candidate of a variant has the same budget"
    return TRAIN + name, ""


def _place(source: Source, variant: str, fresh: str, point: Setting) -> None:
    """Gives the keys of a grid's variant the lines they come from."""
    _copy_places(source.lines, variant, fresh, point)
    _copy_places(source.overrides, variant, fresh, point)


def _copy_places(places: dict[Route, Any], variant: str, fresh: str, point: Setting) -> None:
    mine = {route[2:]: place for route, place in places.items() if route[:2] == ("compare", variant)}
    places.update({("compare", fresh, *route): place for route, place in mine.items()})
    for name in point:
        typed = [("grid", key) for key in (name, name.removeprefix(TRAIN), "base." + name)]
        place = next((places[route] for route in [*typed, ("grid",)] if route in places), None)
        if place is not None:
            places["compare", fresh, *name.split(".")] = place
            places.setdefault(("compare", fresh), place)

"""The study file: what is compared, on which data, with which budget and how many seeds.

A file is read once; every mistake of it comes out in one error with `FILE:LINE`. What leaves this module is
resolved: defaults are filled, overrides applied, and every trial is decided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flagformer.data.catalogue import DataConfig
from flagformer.study.blocks import check_block
from flagformer.study.flags import flag_mistakes
from flagformer.study.mistakes import Mistake, StudyFileError, shown
from flagformer.study.overrides import apply_overrides
from flagformer.study.source import Source, read_source
from flagformer.train.config import EvaluateConfig, TrainConfig, Trial

MOST_SEEDS = 1000
# keys that say how trials are run, never what comes out
EXECUTION = ("concurrency", "threads", "memory", "executor", "gpus", "retries")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,39}")


class StudyFile(BaseModel):
    """The keys of a study file; the inside of `base`, `data`, `train`, `compare` and `evaluate` is checked
    block by block."""

    model_config = ConfigDict(extra="forbid")

    name: str
    base: Any
    data: Any
    train: Any
    compare: Any
    seeds: Any = Field(3, validate_default=True)
    evaluate: Any = Field(default_factory=dict)
    concurrency: int | None = Field(None, ge=1, description="Trials at once; by default one a core.")
    threads: int | None = Field(
        None, ge=1, description="Threads of one trial; by default the cores shared out."
    )
    memory: float | None = Field(
        None, gt=0, description="GiB of memory of one trial; by default estimated; bounds the trials at once."
    )
    executor: Literal["local", "ray"] = Field(
        "local", description="local: processes of this machine; ray: the Ray cluster that RAY_ADDRESS names."
    )
    gpus: float | None = Field(
        None, ge=0, description="GPUs of one trial on a Ray cluster; by default 1 where it has any."
    )
    retries: int | None = Field(
        None,
        ge=0,
        description="How often a trial whose process or node was lost is started again; by default 3 with "
        "ray, else 0.",
    )

    @model_validator(mode="after")
    def _gpus_are_asked_of_ray(self) -> StudyFile:
        if self.gpus is not None and self.executor != "ray":
            raise ValueError(
                "`gpus` must be left out with `executor: local`, whose trials take the GPU that is there "
                f"one by one, but is {self.gpus:g}"
            )
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"`name` must be letters, digits and `_.+-`, as it names a directory, but is {shown(name)}"
            )
        return name

    @field_validator("seeds")
    @classmethod
    def _whole_seeds(cls, seeds: object) -> tuple[int, ...]:
        if isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= MOST_SEEDS:
            return tuple(range(seeds))
        whole = isinstance(seeds, list) and all(
            isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds
        )
        if (
            isinstance(seeds, list)
            and whole
            and seeds
            and len(seeds) <= MOST_SEEDS
            and len(set(seeds)) == len(seeds)
        ):
            return tuple(seeds)
        wanted = f"a count from 1 to {MOST_SEEDS}, or a list of different whole numbers such as [0, 1, 2]"
        raise ValueError(f"`seeds` must be {wanted}, but is {shown(seeds)}")


@dataclass(frozen=True)
class Run:
    """A trial and its place in the study."""

    variant: str
    seed: int
    trial: Trial

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """A resolved study. `data`, `train` and `evaluate` are the validated blocks; `compare` holds each
    variant's own flags."""

    name: str
    base: dict[str, Any]
    data: DataConfig
    train: TrainConfig
    compare: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    evaluate: EvaluateConfig
    concurrency: int | None = None
    threads: int | None = None
    memory: float | None = None
    executor: str = "local"
    gpus: float | None = None
    retries: int | None = None

    @property
    def baseline(self) -> str:
        """The first variant: what the others are compared with."""
        return next(iter(self.compare))

    @property
    def data_name(self) -> str:
        """What the data block names: stdlib, file, copy, ..."""
        return str(self.data.model_dump()["source"])

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Every variant's complete flags."""
        return {name: {**self.base, **own} for name, own in self.compare.items()}

    def trial(self, variant: str, seed: int) -> Trial:
        """One training run of the study."""
        flags = self.variants[variant]
        return Trial(flags=flags, data=self.data, train=self.train, evaluate=self.evaluate, seed=seed)

    @property
    def runs(self) -> list[Run]:
        """Every trial, all variants of a seed before the next seed, so that a study cut short compares like
        with like."""
        return [
            Run(variant, seed, self.trial(variant, seed)) for seed in self.seeds for variant in self.compare
        ]

    def resolved(self) -> dict[str, Any]:
        """The study as plain data that reads back as the same study."""
        plain = {
            "name": self.name,
            "base": self.base,
            "data": self.data.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
            "compare": self.compare,
            "seeds": list(self.seeds),
            "evaluate": self.evaluate.model_dump(mode="json"),
            **{name: getattr(self, name) for name in EXECUTION},
        }
        return {key: value for key, value in plain.items() if value is not None}


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Study, Source]:
    """Reads a study file, applies `key=value` overrides and resolves it. No data is read, no model built.

    Returns:
        the study, and the source that knows the line of every key.

    Raises:
        StudyFileError: every mistake found, each with its place.
    """
    source = read_source(Path(path))
    apply_overrides(source, overrides)
    try:
        return resolve_study(source), source
    except StudyFileError as error:
        raise StudyFileError([*error.mistakes, *flag_mistakes(source)]) from None


def resolve_study(source: Source) -> Study:
    """The study in a source's data; raises StudyFileError with every mistake."""
    given = source.data
    top, mistakes = check_block(source, (), StudyFile, given)
    blocks: dict[str, Any] = {}
    for name, kind in (("data", DataConfig), ("train", TrainConfig), ("evaluate", EvaluateConfig)):
        if name in given or name == "evaluate":
            blocks[name], found = check_block(source, (name,), kind, given.get(name) or {})
            mistakes += found
    base, found = _flags(source, ("base",), given.get("base", {}))
    mistakes += found
    compare, found = _compare(source, given.get("compare", {"": {}}))
    mistakes += found
    if mistakes:
        raise StudyFileError(mistakes)
    return Study(
        name=top.name, base=base, compare=compare, seeds=top.seeds,
        **{name: getattr(top, name) for name in EXECUTION}, **blocks,
    )  # fmt: skip


def _compare(source: Source, value: object) -> tuple[dict[str, dict[str, Any]], list[Mistake]]:
    if not isinstance(value, dict) or not value:
        wanted = "must name at least one variant, the baseline first, as `learned: {}`"
        text = f"`compare` {wanted}, but is {shown(value)}"
        return {}, [source.mistake(("compare",), text)]
    compare, mistakes = {}, []
    for name, flags in value.items():
        route = ("compare", name)
        if name and not VARIANT.fullmatch(name):
            text = (
                f"a variant's name must be up to 40 letters, digits, spaces and `_.+-`, but is {shown(name)}"
            )
            mistakes.append(source.mistake(route, text))
        compare[name], found = _flags(source, route, {} if flags is None else flags)
        mistakes += found
    return compare, mistakes


def _flags(source: Source, route: tuple[str, ...], value: object) -> tuple[dict[str, Any], list[Mistake]]:
    if isinstance(value, dict):
        return dict(value), []
    wanted = "must be a mapping of flags, such as `{rotary_pos_emb: true}`"
    text = f"`{'.'.join(route)}` {wanted}, but is {shown(value)}"
    return {}, [source.mistake(route, text)]

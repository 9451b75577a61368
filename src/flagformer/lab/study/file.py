"""The study file: variants, data, training budget and seeds.

A file is read once; all of its errors are reported together, with `FILE:LINE`. The resulting study is
resolved: defaults are filled in, overrides applied, and every trial is determined.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.objectives.catalogue import ObjectiveConfig
from flagformer.lab.study.blocks import check_block
from flagformer.lab.study.config_errors import StudyFileError, repr_short
from flagformer.lab.study.design import EXECUTION, MatchConfig, Run, Study
from flagformer.lab.study.flags import flag_mistakes
from flagformer.lab.study.overrides import apply_overrides
from flagformer.lab.study.source import Source, read_source
from flagformer.lab.study.starting import fill_base, fill_variants
from flagformer.lab.study.variants import read_flags, read_settings, read_variants, tune_mistakes
from flagformer.lab.train.config import SEED_LIMIT, EvaluateConfig, TrainConfig

__all__ = ["Run", "Study", "StudyFile", "load_study", "resolve_study"]

MOST_SEEDS = 1000
MOST_TRIALS = 10_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
BLOCKS: dict[str, Any] = {
    "data": DataConfig, "objective": ObjectiveConfig, "train": TrainConfig, "evaluate": EvaluateConfig,
    "match": MatchConfig,
}  # fmt: skip
OPTIONAL = ("evaluate", "match")
SHORT = {"match": "what", "objective": "name"}  # blocks that may be one word, and the key that it sets


def plain_name(name: str) -> str:
    """Return the name; ValueError unless it is a valid directory name on every system."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"`name` must be letters, digits and `_.+-`, as it names a directory, but is {repr_short(name)}"
        )
    return name


class StudyFile(BaseModel):
    """The keys of a study file; the contents of `base`, `data`, `train`, `compare` and `evaluate` are
    validated block by block."""

    model_config = ConfigDict(extra="forbid")

    name: str
    base: Any
    data: Any
    objective: Any = None
    train: Any
    compare: Any = None
    grid: Any = None
    factors: Any = None
    hypothesis: str | None = Field(
        None, min_length=1, max_length=1000, description="What the study tests; written into its design."
    )
    sigma: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Nats; the standard deviation of a run's loss over seeds, for the power of the design.",
    )
    tune: Any = None
    seeds: Any = Field(3, validate_default=True)
    match: Any = None
    evaluate: Any = None
    margin: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Nats; a difference whose interval lies within ± margin is equivalent.",
    )
    audit: bool = Field(True, description="Whether every variant is audited and its decoding timed.")
    concurrency: int | None = Field(
        None, ge=1, le=4096, description="Trials in parallel; default: one per core."
    )
    threads: int | None = Field(
        None, ge=1, le=4096, description="Threads of one trial; default: cores divided by trials."
    )
    memory: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="GiB of memory of one trial; default: estimated; limits the trials in parallel.",
    )
    executor: Literal["local", "ray"] = Field(
        "local", description="local: processes on this machine; ray: the Ray cluster at RAY_ADDRESS."
    )
    gpus: float | None = Field(
        None, ge=0, le=4096, description="GPUs of one trial on a Ray cluster; default: 1 if it has any."
    )
    retries: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="Restarts of a trial whose process or node was lost; default: 3 with ray, else 0.",
    )

    @model_validator(mode="after")
    def _gpus_need_ray(self) -> StudyFile:
        if self.gpus is not None and self.executor != "ray":
            raise ValueError(
                "`gpus` must be left out with `executor: local`, whose trials use the GPU one at a time, "
                f"but is {self.gpus:g}"
            )
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return plain_name(name)

    @field_validator("seeds")
    @classmethod
    def _whole_seeds(cls, seeds: object) -> tuple[int, ...]:
        if isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= MOST_SEEDS:
            return tuple(range(seeds))
        fault = _seeds_fault(seeds)
        if not fault and isinstance(seeds, list):
            return tuple(seeds)
        wanted = (
            f"a count from 1 to {MOST_SEEDS}, or a list of different whole numbers from 0 to 2^63 - 1, such "
            "as [0, 1, 2]"
        )
        raise ValueError(f"`seeds` must be {wanted}, but {fault}")


def _seeds_fault(seeds: object) -> str:
    """The error of a list of seeds; empty if it is valid."""
    if not isinstance(seeds, list) or not seeds:
        return f"is {repr_short(seeds)}"
    if len(seeds) > MOST_SEEDS:
        return f"has {len(seeds):,} elements"
    for index, seed in enumerate(seeds):
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEED_LIMIT:
            return f"contains {repr_short(seed)}"
        if seed in seeds[:index]:
            return f"contains {seed} twice"
    return ""


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Study, Source]:
    """Read a study file, apply `key=value` overrides and resolve it, without reading data or building models.

    Returns:
        The study, and the source with the line of every key.

    Raises:
        StudyFileError: with all errors and their lines.
    """
    source = read_source(Path(path))
    apply_overrides(source, overrides)
    try:
        return resolve_study(source), source
    except StudyFileError as error:
        raise StudyFileError([*error.mistakes, *flag_mistakes(source)]) from None


def resolve_study(source: Source) -> Study:
    """The study of a source's data; StudyFileError with all errors."""
    given = source.data
    top, mistakes = check_block(source, (), StudyFile, given)
    mistakes += fill_base(source)
    blocks: dict[str, Any] = {}
    for name, kind in BLOCKS.items():
        if given.get(name) is None and name == "objective":
            continue
        if name in given or name in OPTIONAL:
            blocks[name], found = check_block(source, (name,), kind, _block(given, name))
            mistakes += found
    base, found = read_flags(source, ("base",), given.get("base", {}))
    mistakes += found
    compare, found = read_variants(source, blocks.get("train"))
    mistakes += found or fill_variants(source, compare)
    factors, _ = read_settings(source, "factors")  # its errors are those of read_variants
    tune, found = read_settings(source, "tune")
    mistakes += found or tune_mistakes(source, tune, compare, blocks.get("train"))
    if "compare" not in given and not given.get("grid"):
        mistakes.append(source.mistake((), "`compare` is missing"))
    if mistakes:
        raise StudyFileError(mistakes)
    study = Study(
        name=top.name, base=base, compare=compare, seeds=top.seeds, tune=tune, margin=top.margin,
        factors=factors, hypothesis=top.hypothesis, sigma=top.sigma,
        audit=top.audit, **{name: getattr(top, name) for name in EXECUTION}, **blocks,
    )  # fmt: skip
    _refuse_too_many(source, study)
    return study


def _block(given: dict[str, Any], name: str) -> object:
    value = given.get(name)
    if name in OPTIONAL and value is None:
        return {}
    return long_form(name, value)


def long_form(name: str, value: object) -> object:
    """The mapping of a block that may be one word: `match: params`, `objective: masked_lm`."""
    return {SHORT[name]: value} if name in SHORT and isinstance(value, str) else value


def _refuse_too_many(source: Source, study: Study) -> None:
    trials = len(study.compare) * len(study.seeds) * len(study.candidates)
    if trials > MOST_TRIALS:
        text = f"makes {trials:,} trials; a study has at most {MOST_TRIALS:,}"
        raise StudyFileError([source.mistake(("tune",) if study.tune else ("seeds",), text)])

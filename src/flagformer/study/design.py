"""A resolved study: every variant, every candidate that is tried for it, every trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal

from pydantic import Field

from flagformer.data.catalogue import DataConfig
from flagformer.train.config import Block, EvaluateConfig, TrainConfig, Trial

TRAIN = "train."  # in front of the training settings among a variant's or a grid's keys
# keys that say how trials are run, never what comes out
EXECUTION = ("concurrency", "threads", "memory", "executor", "gpus", "retries")
Own = dict[str, Any]  # what a variant changes: flags, and training settings under `train`
Setting = dict[str, Any]  # `lr_scale: 2` (a flag) and `train.lr: 1e-3` (a training setting)


class MatchConfig(Block):
    """What is made equal between variants, and by which knob; a study file may say just `match: params`."""

    what: Literal["params", "flops", "tokens", "none"] = Field(
        default="tokens",
        description="params: parameters; flops: forward FLOPs per token, or those of the training as a whole "
        "`by: steps`; tokens: tokens trained on, which all but `none` and `by: steps` ask for.",
    )
    by: Literal["ff_mult", "dim", "depth", "steps"] = Field(
        default="ff_mult", description="What is turned in every variant but the baseline."
    )
    within: float = Field(default=0.01, gt=0, lt=1, description="How far from the baseline counts as equal.")


@dataclass(frozen=True)
class Run:
    """A trial and its place in the study; `tuned` is the candidate it belongs to, empty without tuning."""

    variant: str
    seed: int
    trial: Trial
    tuned: Setting = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages name it."""
        candidate = "".join(f", {key.removeprefix(TRAIN)} {value}" for key, value in self.tuned.items())
        return f"{self.variant}, seed {self.seed}{candidate}"


@dataclass(frozen=True)
class Study:
    """A resolved study. `data`, `train` and `evaluate` are the validated blocks; `compare` holds what each
    variant changes in the base: flags, and training settings under `train`."""

    name: str
    base: dict[str, Any]
    data: DataConfig
    train: TrainConfig
    compare: dict[str, Own]
    seeds: tuple[int, ...]
    evaluate: EvaluateConfig
    tune: dict[str, list[Any]] = field(default_factory=dict)
    match: MatchConfig = field(default_factory=MatchConfig)
    margin: float | None = None
    audit: bool = True
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
        return {name: {**self.base, **own_flags(own)} for name, own in self.compare.items()}

    @property
    def candidates(self) -> list[Setting]:
        """What is tried for every variant, all alike; one empty setting without `tune`."""
        return [dict(zip(self.tune, values)) for values in product(*self.tune.values())]

    @cached_property
    def copies(self) -> dict[str, int]:
        """How many variants before this one change the same: those are trained from other first weights."""
        seen: list[Own] = []
        found = {}
        for name, own in self.compare.items():
            found[name] = seen.count(own)
            seen.append(own)
        return found

    def train_of(self, variant: str, tuned: Setting | None = None) -> TrainConfig:
        """The training settings of a variant, with those of a candidate."""
        own = self.compare[variant].get("train", {})
        candidate = {
            key.removeprefix(TRAIN): value for key, value in (tuned or {}).items() if key.startswith(TRAIN)
        }
        return TrainConfig.model_validate({**self.train.model_dump(), **own, **candidate})

    def tokens_of(self, variant: str) -> int:
        """Tokens that a trial of the variant is trained on."""
        train = self.train_of(variant)
        return train.steps * train.batch_size * self.data.seq_len

    def trial(self, variant: str, seed: int, tuned: Setting | None = None) -> Trial:
        """One training run of the study."""
        candidate = {key: value for key, value in (tuned or {}).items() if not key.startswith(TRAIN)}
        return Trial(
            flags={**self.variants[variant], **candidate}, data=self.data,
            train=self.train_of(variant, tuned), evaluate=self.evaluate,
            seed=seed, copy_number=self.copies[variant],
        )  # fmt: skip

    @cached_property
    def runs(self) -> list[Run]:
        """Every trial, all variants and candidates of a seed before the next seed, so that a study cut short
        compares like with like."""
        return [
            Run(variant, seed, self.trial(variant, seed, tuned), tuned)
            for seed in self.seeds
            for variant in self.compare
            for tuned in self.candidates
        ]

    def resolved(self) -> dict[str, Any]:
        """The study as plain data that reads back as the same study: a grid is spelled out in `compare`."""
        plain = {
            "name": self.name,
            "base": self.base,
            "data": self.data.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
            "compare": self.compare,
            "tune": self.tune or None,
            "seeds": list(self.seeds),
            "match": self.match.model_dump(mode="json"),
            "evaluate": self.evaluate.model_dump(mode="json"),
            "margin": self.margin,
            "audit": self.audit,
            **{name: getattr(self, name) for name in EXECUTION},
        }
        return {key: value for key, value in plain.items() if value is not None}


def own_flags(own: Own) -> dict[str, Any]:
    """The flags among what a variant changes."""
    return {key: value for key, value in own.items() if key != "train"}


def flat(own: Own) -> Setting:
    """What a variant changes on one level: `train: {lr: 1}` becomes `train.lr: 1`."""
    return {**own_flags(own), **{TRAIN + key: value for key, value in own.get("train", {}).items()}}


def with_setting(own: Own, setting: Setting) -> Own:
    """What a variant changes, and `setting` besides."""
    train = {key.removeprefix(TRAIN): value for key, value in setting.items() if key.startswith(TRAIN)}
    flags = {key: value for key, value in setting.items() if not key.startswith(TRAIN)}
    together = {**own, **flags}
    return {**together, "train": {**own.get("train", {}), **train}} if train else together

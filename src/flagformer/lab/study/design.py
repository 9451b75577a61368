"""A resolved study: its variants, their tuning candidates, and the trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.objectives.catalogue import ObjectiveConfig
from flagformer.lab.study.cells import TRAIN as TRAIN
from flagformer.lab.study.cells import Contrast, cell_of, contrasts, point_name, points
from flagformer.lab.study.cells import Setting as Setting
from flagformer.lab.study.verdicts import LEVEL
from flagformer.lab.train.config import Block, EvaluateConfig, TrainConfig, Trial

# keys that affect how trials are executed, never their results
EXECUTION = ("concurrency", "threads", "memory", "executor", "gpus", "retries")
Own = dict[str, Any]  # the changes of a variant: flags, and training settings under `train`


class MatchConfig(Block):
    """The quantity that is matched between variants, and the knob for it; short form: `match: params`."""

    what: Literal["params", "flops", "tokens", "none"] = Field(
        default="tokens",
        description="params: parameters; flops: forward FLOPs per token, or of the whole training with "
        "`by: steps`; tokens: training tokens, which must be equal for all but `none` and `by: steps`.",
    )
    by: Literal["ff_mult", "dim", "depth", "steps"] = Field(
        default="ff_mult", description="The setting that is changed in every variant but the baseline."
    )
    within: float = Field(
        default=0.01, gt=0, lt=1, description="Relative difference from the baseline that counts as equal."
    )


@dataclass(frozen=True)
class Run:
    """A trial of a variant with a seed; `tuned` is its tuning candidate, empty without tuning."""

    variant: str
    seed: int
    trial: Trial
    tuned: Setting = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name in messages."""
        candidate = "".join(f", {key.removeprefix(TRAIN)} {value}" for key, value in self.tuned.items())
        return f"{self.variant}, seed {self.seed}{candidate}"


@dataclass(frozen=True)
class Study:
    """A resolved study. `data`, `train` and `evaluate` are the validated blocks; `compare` maps each variant
    to its changes of the base: flags, and training settings under `train`. With `factors` it has every
    variant in every cell, as `rotary depth=2`."""

    name: str
    base: dict[str, Any]
    data: DataConfig
    train: TrainConfig
    compare: dict[str, Own]
    seeds: tuple[int, ...]
    evaluate: EvaluateConfig
    objective: ObjectiveConfig | None = None
    tune: dict[str, list[Any]] = field(default_factory=dict)
    match: MatchConfig = field(default_factory=MatchConfig)
    factors: dict[str, list[Any]] = field(default_factory=dict)
    hypothesis: str | None = None
    sigma: float | None = None
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
        """The first variant, with which the others are compared; with factors that of the first cell."""
        return next(iter(self.compare))

    @cached_property
    def cells(self) -> list[str]:
        """The names of the cells; one empty name without factors."""
        return [point_name("", point) for point in points(self.factors)]

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """The questions of the study."""
        return contrasts(self.factors)

    @property
    def level(self) -> float:
        """The error of each question: all of them are one family."""
        return LEVEL / len(self.contrasts)

    @cached_property
    def contenders(self) -> list[str]:
        """The names of the variants without their cell, the baseline first."""
        return list(dict.fromkeys(self.plain_name(name) for name in self.compare))

    @property
    def reference(self) -> str:
        """The name of the baseline without its cell."""
        return self.contenders[0]

    def plain_name(self, variant: str) -> str:
        """The name of a variant without its cell."""
        cell = self.cell_of(variant)
        return variant.removesuffix(f" {cell}") if cell else variant

    def cell_of(self, variant: str) -> str:
        """The cell of a variant; empty without factors."""
        return cell_of(variant, self.cells)

    def full_name(self, contender: str, cell: str) -> str:
        """The name of a variant in a cell."""
        return f"{contender} {cell}" if cell else contender

    def baseline_of(self, variant: str) -> str:
        """The baseline in the cell of a variant."""
        return self.full_name(self.reference, self.cell_of(variant))

    @property
    def loss_length(self) -> int:
        """The test length whose loss decides the verdict: that of training, if it is tested."""
        lengths = self.runs[0].trial.lengths
        return self.data.seq_len if self.data.seq_len in lengths else lengths[0]

    @property
    def data_name(self) -> str:
        """The data source: stdlib, file, copy, ..."""
        return str(self.data.model_dump()["source"])

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """The complete flags of every variant."""
        return {name: {**self.base, **own_flags(own)} for name, own in self.compare.items()}

    @property
    def candidates(self) -> list[Setting]:
        """The tuning candidates, the same for every variant; one empty setting without `tune`."""
        return points(self.tune)

    @cached_property
    def copies(self) -> dict[str, int]:
        """The number of earlier variants with the same changes; copies get other initial weights."""
        earlier: list[Own] = []
        copies = {}
        for name, own in self.compare.items():
            copies[name] = earlier.count(own)
            earlier.append(own)
        return copies

    def train_of(self, variant: str, tuned: Setting | None = None) -> TrainConfig:
        """The training settings of a variant, updated with those of a candidate."""
        own = self.compare[variant].get("train", {})
        candidate = {
            key.removeprefix(TRAIN): value for key, value in (tuned or {}).items() if key.startswith(TRAIN)
        }
        return TrainConfig.model_validate({**self.train.model_dump(), **own, **candidate})

    def tokens_of(self, variant: str) -> int:
        """The number of training tokens of a trial of the variant."""
        train = self.train_of(variant)
        return train.steps * train.batch_size * self.data.seq_len

    def trial(self, variant: str, seed: int, tuned: Setting | None = None) -> Trial:
        """One training run of the study."""
        candidate = {key: value for key, value in (tuned or {}).items() if not key.startswith(TRAIN)}
        return Trial(
            flags={**self.variants[variant], **candidate}, data=self.data,
            objective=self.objective, train=self.train_of(variant, tuned), evaluate=self.evaluate,
            seed=seed, copy_number=self.copies[variant],
        )  # fmt: skip

    @cached_property
    def runs(self) -> list[Run]:
        """All trials, by seed first, so that an interrupted study has the same seeds of all variants."""
        return [
            Run(variant, seed, self.trial(variant, seed, tuned), tuned)
            for seed in self.seeds
            for variant in self.compare
            for tuned in self.candidates
        ]

    def resolved(self) -> dict[str, Any]:
        """The study as plain data that resolves to the same study; grid and factors are expanded."""
        plain = {
            "name": self.name,
            "base": self.base,
            "data": self.data.model_dump(mode="json"),
            "objective": None if self.objective is None else self.objective.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
            "compare": self.compare,
            "factors": self.factors or None,
            "hypothesis": self.hypothesis,
            "sigma": self.sigma,
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
    """The flags among the changes of a variant."""
    return {key: value for key, value in own.items() if key != "train"}


def flat(own: Own) -> Setting:
    """The changes of a variant without nesting: `train: {lr: 1}` becomes `train.lr: 1`."""
    return {**own_flags(own), **{TRAIN + key: value for key, value in own.get("train", {}).items()}}


def with_setting(own: Own, setting: Setting) -> Own:
    """The changes of a variant, updated with `setting`."""
    train = {key.removeprefix(TRAIN): value for key, value in setting.items() if key.startswith(TRAIN)}
    flags = {key: value for key, value in setting.items() if not key.startswith(TRAIN)}
    together = {**own, **flags}
    return {**together, "train": {**own.get("train", {}), **train}} if train else together

"""The results of a study: the state of every trial, and a row for each variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flagformer.lab.study.design import Run, Setting, Study
from flagformer.lab.study.effects import Effect
from flagformer.lab.study.statistics import Difference, Estimate

BITS = "bits per byte"
STARTED = ("start", "graft")  # of variants that start from a model
MEASURED = (
    "tokens_per_second",
    "speed_range",
    "speed_ratio",
    "decode_tokens_per_second",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class TrialState:
    """The state of a trial: finished, diverged, failed, unfinished (it has steps) or waiting."""

    run: Run
    state: str
    steps: int
    detail: str = ""
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Candidate:
    """A tuning candidate of a variant, with its final loss on the validation split."""

    setting: Setting
    validation: Estimate


@dataclass(frozen=True)
class AuditSummary:
    """The audit of a variant: `found` maps properties to "passed", "failed" or "not applicable"; it is empty
    without an audit."""

    found: Mapping[str, str]
    failures: tuple[str, ...] = ()
    remark: str = ""

    @property
    def invalid(self) -> bool:
        """Whether a check failed, so that the variant's loss is not comparable."""
        return "failed" in self.found.values()


@dataclass(frozen=True)
class VariantResult:
    """The results of one variant. Quality is reproducible; speed is measured and varies.

    `tokens_per_second` is the median over seeds, `speed_range` the slowest and the fastest seed,
    `speed_ratio` the speed relative to the baseline's, paired by seed. `diverged` counts seeds whose loss was
    not finite. `costs` holds the fields of `costs.Cost`. `loss` is in `Results.unit` at the length
    `Results.loss_length`; `quality` maps a test length to bits per byte (text) or accuracy (tasks);
    `by_position` is the mean loss in equal parts of the longest row. `start` is the loss before the first
    step of variants with `from`, `graft` the line of a `Graft`.
    For a tuned variant the results are those of its best candidate, `tuned`; `at_edge` names the settings
    whose best value is the first or last of the grid.
    """

    variant: str
    flags: dict[str, Any]
    tuned: Setting
    at_edge: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    runs: int
    costs: Mapping[str, int]
    tokens_per_second: float | None
    speed_range: tuple[float, float] | None
    speed_ratio: Difference | None
    decode_tokens_per_second: float | None
    peak_memory_bytes: int | None
    state_bytes_per_token: int | None
    stamp: AuditSummary
    loss: Estimate
    validation: Estimate
    quality: dict[int, Estimate]
    by_position: tuple[float, ...]
    difference: Difference | None
    quality_difference: dict[int, Difference]
    diverged: int
    start: Estimate
    graft: str

    @property
    def params(self) -> int | None:
        return self.costs.get("params")

    @property
    def flops_per_token(self) -> int | None:
        return self.costs.get("flops_per_token")


@dataclass(frozen=True)
class Results:
    """A study with the results so far. `effects` are those of a factorial study; `design` is design.json."""

    directory: Path
    study: Study
    setting: dict[str, Any]
    trials: list[TrialState]
    rows: list[VariantResult]
    effects: list[Effect]
    design: Mapping[str, Any]
    metric: str
    chance: float | None
    loss_length: int

    @property
    def unit(self) -> str:
        """The unit of the loss."""
        return self.study.runs[0].trial.trained_by.unit

    def count(self, *states: str) -> int:
        """The number of trials in one of the states."""
        return sum(trial.state in states for trial in self.trials)

    def row(self, variant: str) -> VariantResult:
        """The row of a variant."""
        return next(row for row in self.rows if row.variant == variant)

    def best_trials(self, variant: str) -> list[TrialState]:
        """The trials of a variant's best candidate."""
        tuned = self.row(variant).tuned
        return [trial for trial in self.trials if (trial.run.variant, trial.run.tuned) == (variant, tuned)]


def as_json(results: Results) -> dict[str, Any]:
    """The contents of results.json. `measured` values differ from run to run; on one machine all others are
    reproducible."""
    return {
        "schema": 3,
        "study": results.study.resolved(),
        "baseline": results.study.baseline,
        "metric": results.metric,
        "chance": results.chance,
        "loss_length": results.loss_length,
        "rows": [_row_json(row) for row in results.rows],
        **({"effects": [asdict(effect) for effect in results.effects]} if results.effects else {}),
        "trials": [
            {
                "variant": t.run.variant,
                "seed": t.run.seed,
                "tuned": t.run.tuned,
                "id": t.run.trial.id,
                "state": t.state,
                "steps": t.steps,
            }
            for t in results.trials
        ],
        "measured": {
            **{name: {row.variant: _plain(getattr(row, name)) for row in results.rows} for name in MEASURED},
            "setting": results.setting,
        },
    }


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Difference) else value


def _row_json(row: VariantResult) -> dict[str, Any]:
    plain = asdict(row)
    left_out = {*MEASURED, *(() if row.start.n else STARTED)}
    return {key: value for key, value in plain.items() if key not in left_out}

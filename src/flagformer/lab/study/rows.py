"""The rows of a study's table: the best candidate of every variant, its losses, and its difference from the
baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagformer.lab.study.design import Setting, Study
from flagformer.lab.study.effects import Effect, find_effects
from flagformer.lab.study.results import AuditSummary, Candidate, TrialState, VariantResult
from flagformer.lab.study.statistics import Difference, Estimate, mean_interval, paired_differences
from flagformer.lab.study.verdicts import LEVEL

Values = dict[str, dict[int, float]]  # variant -> seed -> value


def make_rows(
    study: Study,
    setting: Mapping[str, Any],
    examined: Mapping[str, Mapping[str, Any]],
    trials: Sequence[TrialState],
    loss_length: int,
) -> tuple[list[VariantResult], list[Effect]]:
    """One row per variant, the baseline first, and with factors the effects.

    Args:
        setting: the contents of setting.json.
        examined: the audits of the variants.
        loss_length: the test length whose loss decides the verdict.
    """
    candidates = {variant: _candidates(study, variant, trials) for variant in study.compare}
    best = {variant: _best(found) for variant, found in candidates.items()}
    chosen = {
        name: [t for t in trials if (t.run.variant, t.run.tuned) == (name, best[name])] for name in best
    }
    stamps = {variant: _stamp(study, examined.get(variant, {})) for variant in study.compare}
    lengths = study.runs[0].trial.lengths
    key = study.runs[0].trial.trained_by.quality_of(study.data)[1]
    lower = key == "bits_per_byte"
    losses = {name: _by_seed(chosen[name], loss_length, "nats") for name in chosen}
    quality = {n: {name: _by_seed(chosen[name], n, key) for name in chosen} for n in lengths}
    refused = _refused(study, stamps, chosen)
    apart = _judged(_within_cells(study, losses, study.level, margin=study.margin), refused)
    share = LEVEL / len(lengths) / len(study.cells)
    by_length = {n: _judged(_within_cells(study, quality[n], share, lower), refused) for n in lengths}
    ratios = _speed_ratios(study, chosen)
    effects = find_effects(study, losses, refused) if study.factors else []
    return [
        VariantResult(
            variant=name, flags=own, tuned=best[name], at_edge=_at_edge(study, best[name]),
            candidates=tuple(candidates[name]) if study.tune else (),
            runs=sum(t.state in ("finished", "diverged") for t in trials if t.run.variant == name),
            **_costs(setting.get("variants", {}).get(name, {}), examined.get(name, {}), chosen[name]),
            stamp=stamps[name],
            loss=mean_interval(list(losses[name].values())),
            validation=next(c.validation for c in candidates[name] if c.setting == best[name]),
            quality={n: mean_interval(list(quality[n][name].values())) for n in lengths},
            by_position=_by_position(chosen[name], max(lengths)),
            difference=apart.get(name),
            quality_difference={n: found[name] for n, found in by_length.items() if name in found},
            speed_ratio=ratios.get(name), diverged=sum(t.state == "diverged" for t in chosen[name]),
            **_start(chosen[name]),
        )
        for name, own in study.compare.items()
    ], effects  # fmt: skip


def _costs(
    known: Mapping[str, int], examined: Mapping[str, Any], chosen: Sequence[TrialState]
) -> dict[str, Any]:
    """The cost fields of `VariantResult`."""
    ran = [trial.result["cost"] for trial in chosen if trial.result]
    speeds = [cost["tokens_per_second"] for cost in ran if cost["tokens_per_second"]]
    peaks = [cost["peak_memory_bytes"] for cost in ran if cost.get("peak_memory_bytes")]
    return {
        "costs": dict(known),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "speed_range": (min(speeds), max(speeds)) if speeds else None,
        "decode_tokens_per_second": examined.get("decode_tokens_per_second"),
        "state_bytes_per_token": examined.get("state_bytes_per_token"),
        "peak_memory_bytes": max(peaks) if peaks else None,
    }


def _start(chosen: Sequence[TrialState]) -> dict[str, Any]:
    """`start` and `graft` of `VariantResult`."""
    found = [t.result["start"] for t in chosen if t.result and t.result.get("start")]
    losses = [one["evaluation"]["nats"] for one in found]
    lines = [one["graft"].get("line", "") for one in found]
    return {
        "start": mean_interval([loss for loss in losses if loss is not None]),
        "graft": lines[0] if lines else "",
    }


def _candidates(study: Study, variant: str, trials: Sequence[TrialState]) -> list[Candidate]:
    found = []
    for setting in study.candidates:
        own = [t for t in trials if (t.run.variant, t.run.tuned) == (variant, setting)]
        values = [t.result.get("validation_nats") for t in own if t.state == "finished" and t.result]
        # a candidate that diverges with one seed is rejected
        stable = not any(t.state == "diverged" for t in own)
        found.append(
            Candidate(setting, mean_interval([v for v in values if v is not None] if stable else []))
        )
    return found


def _best(candidates: Sequence[Candidate]) -> Setting:
    """The candidate with the lowest mean validation loss among those with the most seeds; else the first."""
    most = max(candidate.validation.n for candidate in candidates)
    known = [c for c in candidates if c.validation.n == most and c.validation.mean is not None]
    if not known:
        return candidates[0].setting
    return min(known, key=lambda c: c.validation.mean if c.validation.mean is not None else 0.0).setting


def _at_edge(study: Study, best: Setting) -> tuple[str, ...]:
    """The tuned numbers whose best value is at the edge of the grid."""
    edges = []
    for key, values in study.tune.items():
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if numbers and len(values) > 1 and best.get(key) in (min(values), max(values)):
            edges.append(key)
    return tuple(edges)


def _stamp(study: Study, found: Mapping[str, Any]) -> AuditSummary:
    if not study.audit:
        return AuditSummary({}, remark="not audited")
    if "stamps" not in found:
        return AuditSummary({}, remark=f"audit failed: {found['failure']}" if "failure" in found else "")
    return AuditSummary(found["stamps"], tuple(found["failures"]))


def _within_cells(
    study: Study, values: Values, level: float, lower_is_better: bool = True, margin: float | None = None
) -> dict[str, Difference]:
    """The differences of every variant from the baseline of its cell; each cell is a family of its own."""
    found: dict[str, Difference] = {}
    for cell in study.cells:
        here = {name: values[name] for name in values if study.cell_of(name) == cell}
        baseline = study.full_name(study.reference, cell)
        found |= paired_differences(here, baseline, lower_is_better, margin, level)
    return found


def _refused(
    study: Study, stamps: Mapping[str, AuditSummary], chosen: Mapping[str, Sequence[TrialState]]
) -> dict[str, str]:
    """The verdicts of variants that get none from their losses: "invalid" if an audit failed, "unstable" if a
    seed diverged, of the variant or of the baseline."""
    own = {
        name: "invalid" if stamps[name].invalid else "unstable"
        for name in study.compare
        if stamps[name].invalid or any(trial.state == "diverged" for trial in chosen[name])
    }
    shared = {name: own[study.baseline_of(name)] for name in study.compare if study.baseline_of(name) in own}
    return shared | own


def _judged(differences: dict[str, Difference], refused: Mapping[str, str]) -> dict[str, Difference]:
    return {
        name: replace(found, verdict=refused.get(name, found.verdict)) for name, found in differences.items()
    }


def _speed_ratios(study: Study, chosen: Mapping[str, Sequence[TrialState]]) -> dict[str, Difference]:
    """Training speed relative to the baseline's, paired by seed: the geometric mean of the ratios and its
    interval. The verdict is "faster", "slower" or "not resolved"."""
    speeds = {
        name: {
            t.run.seed: math.log(t.result["cost"]["tokens_per_second"])
            for t in trials
            if t.state == "finished" and t.result and t.result["cost"]["tokens_per_second"]
        }
        for name, trials in chosen.items()
    }
    names = {"better": "faster", "worse": "slower"}
    return {
        name: Difference(_exponential(one.estimate), names.get(one.verdict, one.verdict))
        for name, one in _within_cells(study, speeds, LEVEL / len(study.cells), lower_is_better=False).items()
    }


def _exponential(logs: Estimate) -> Estimate:
    mean, low, high = (None if x is None else math.exp(x) for x in (logs.mean, logs.low, logs.high))
    return Estimate(logs.n, mean, low, high, tuple(map(math.exp, logs.values)))


def _by_seed(trials: Sequence[TrialState], length: int, key: str) -> dict[int, float]:
    """seed -> value for the finished trials, in the order of the seeds."""
    return {
        trial.run.seed: entry[key]
        for trial in trials
        if trial.state == "finished" and trial.result is not None
        for entry in trial.result["evaluation"]
        if entry["seq_len"] == length
    }


def _by_position(trials: Sequence[TrialState], length: int) -> tuple[float, ...]:
    """The mean loss over seeds in each part of the row; empty if unknown."""
    parts = [
        entry["by_position"]
        for trial in trials
        if trial.state == "finished" and trial.result is not None
        for entry in trial.result["evaluation"]
        if entry["seq_len"] == length and entry.get("by_position")
    ]
    if not parts or any(value is None for part in parts for value in part):
        return ()
    return tuple(sum(values) / len(values) for values in zip(*parts))

"""The columns of a study's tables, the same in HTML, Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flagformer.lab.study.design import TRAIN, Setting
from flagformer.lab.study.formatting import (
    NOTHING,
    count,
    difference,
    estimate,
    flags_text,
    interval,
    short,
    size,
)
from flagformer.lab.study.results import AuditSummary, Results, VariantResult

PASSED, FAILED = "\N{CHECK MARK}", "\N{MULTIPLICATION X}"
STAR = "\N{NO-BREAK SPACE}*"  # measured
LETTERS = {
    "causal": "causal",
    "padding-neutral": "padding",
    "cache = full": "cache",
    "batch-independent": "batch",
    "deterministic": "deterministic",
    "finite": "finite",
}


@dataclass(frozen=True)
class Column:
    """One column: its displayed `text`, its CSV `values` by name, and its CSS class `kind`, for each row."""

    heading: str
    text: Callable[[VariantResult], str]
    values: Callable[[VariantResult], Mapping[str, Any]]
    kind: Callable[[VariantResult], str] = lambda row: ""
    small: Callable[[VariantResult], str] = lambda row: ""


def main_columns(results: Results) -> list[Column]:
    """Loss, difference, verdict and validity first, so that a narrow page shows them; then size and cost."""
    columns = [
        Column(
            "variant",
            lambda r: r.variant,
            lambda r: {"variant": r.variant, "flags": flags_text(r.flags)},
            lambda r: "wrap",
            lambda r: flags_text(r.flags),
        ),
        Column(
            f"loss at {results.loss_length}",
            lambda r: estimate(r.loss),
            lambda r: {"loss": r.loss.mean, "loss_half_width": r.loss.half_width, "seeds": r.loss.n},
        ),
        *_start_columns(results),
        *_verdict_columns(results),
        _stamp_column(),
    ]
    if results.study.tune:
        columns.append(
            Column(
                "best setting",
                best_setting,
                lambda r: {"best": setting_text(r.tuned), "at_edge": bool(r.at_edge), "runs": r.runs},
                lambda r: "worse" if r.at_edge else "",
            )
        )
    return [
        *columns,
        _cost("parameters", "params", count),
        _cost("FLOPs per token", "flops_per_token", short),
        Column(
            f"tokens/s{STAR}",
            lambda r: short(r.tokens_per_second),
            lambda r: {"tokens_per_second": r.tokens_per_second},
        ),
        Column(
            f"memory{STAR}",
            lambda r: size(r.peak_memory_bytes),
            lambda r: {"peak_memory_bytes": r.peak_memory_bytes},
        ),
    ]


def _start_columns(results: Results) -> list[Column]:
    """The loss before the first step, in studies that start from a model."""
    if not any(row.start.n for row in results.rows):
        return []
    return [
        Column(
            "loss at start",
            lambda r: estimate(r.start) if r.start.n else NOTHING,
            lambda r: {"loss_at_start": r.start.mean, "graft": r.graft},
        )
    ]


def _verdict_columns(results: Results) -> list[Column]:
    return [
        Column(
            f"difference from {results.study.reference}",
            lambda r: "baseline" if r.difference is None else difference(r.difference),
            _difference_values,
        ),
        *_equivalence_columns(results),
        Column(
            "verdict",
            lambda r: r.difference.verdict if r.difference else "",
            lambda r: {"verdict": r.difference.verdict if r.difference else "baseline"},
            lambda r: r.difference.verdict.replace(" ", "-") if r.difference else "",
        ),
    ]


def _equivalence_columns(results: Results) -> list[Column]:
    """The interval that decides "equivalent", in studies with a margin."""
    if results.study.margin is None:
        return []
    return [
        Column(
            f"90 % interval (margin {results.study.margin:g})",
            lambda r: interval(r.difference.equivalence) if r.difference and r.difference.equivalence else "",
            _equivalence_values,
        )
    ]


def _stamp_column() -> Column:
    return Column(
        "audit",
        lambda r: stamp_text(r.stamp),
        lambda r: {"valid": not r.stamp.invalid if r.stamp.found else None, **dict(r.stamp.found)},
        lambda r: "wrap invalid" if r.stamp.invalid else "left",
    )


def cost_columns(results: Results) -> list[Column]:
    """The counted and measured costs of each variant."""
    return [
        Column("variant", lambda r: r.variant, lambda r: {"variant": r.variant}, lambda r: "left"),
        _cost("parameters", "params", count),
        _cost("without embeddings", "body", count),
        _cost("active per token", "active", count),
        _cost("FLOPs per token", "flops_per_token", short),
        _cost("FLOPs per token, all heads dense", "dense_flops_per_token", short),
        _cost("saved for backward", "saved_bytes", size),
        _cost("training memory, at least", "memory_bytes", size),
        Column(f"peak memory without torch{STAR}", lambda r: size(r.peak_memory_bytes), lambda r: {}),
        Column(f"training, tokens/s{STAR}", lambda r: short(r.tokens_per_second), lambda r: {}),
        Column(
            f"decoding, tokens/s{STAR}",
            lambda r: short(r.decode_tokens_per_second),
            lambda r: {"decode_tokens_per_second": r.decode_tokens_per_second},
        ),
        Column(
            "decode state per token",
            lambda r: size(r.state_bytes_per_token),
            lambda r: {"state_bytes_per_token": r.state_bytes_per_token},
        ),
    ]


def length_columns(results: Results) -> list[Column]:
    """The metric at every test length, with the difference from the baseline."""
    unit = results.metric
    columns = [Column("variant", lambda r: r.variant, lambda r: {"variant": r.variant}, lambda r: "left")]
    for length in results.rows[0].quality:
        columns += [_quality_column(unit, length), _quality_difference(length)]
    return columns


def _quality_column(unit: str, length: int) -> Column:
    key = f"{unit.replace(' ', '_')}_{length}"
    return Column(
        f"{unit} at {length}", lambda r: estimate(r.quality[length]), lambda r: {key: r.quality[length].mean}
    )


def _quality_difference(length: int) -> Column:
    def kind(row: VariantResult) -> str:
        against = row.quality_difference.get(length)
        return against.verdict.replace(" ", "-") if against else ""

    return Column("difference", lambda r: difference(r.quality_difference.get(length)), lambda r: {}, kind)


def best_setting(row: VariantResult) -> str:
    """The best candidate; a setting at the edge of the grid is marked."""
    return setting_text(row.tuned) + (" (edge of the grid)" if row.at_edge else "")


def setting_text(setting: Setting) -> str:
    """`lr 0.001, clip 1`."""
    return ", ".join(f"{key.removeprefix(TRAIN)} {value}" for key, value in setting.items())


def stamp_text(stamp: AuditSummary) -> str:
    """`valid`, the failed checks, or the reason why there is no audit."""
    if not stamp.found:
        return stamp.remark or NOTHING
    failed = [name for name, status in stamp.found.items() if status == "failed"]
    if failed:
        return f"{FAILED} INVALID: not {', not '.join(failed)}"
    if set(stamp.found.values()) == {"passed"}:
        return f"{PASSED} valid"
    passed = [LETTERS[name] for name, status in stamp.found.items() if status == "passed"]
    return f"{PASSED} {', '.join(passed)}" if passed else "not applicable"


def _cost(heading: str, name: str, word: Callable[[Any], str]) -> Column:
    return Column(heading, lambda r: word(r.costs.get(name)), lambda r: {name: r.costs.get(name)})


def _difference_values(row: VariantResult) -> Mapping[str, Any]:
    estimate = row.difference.estimate if row.difference else None
    return {
        "difference": estimate.mean if estimate else None,
        "difference_low": estimate.low if estimate else None,
        "difference_high": estimate.high if estimate else None,
    }


def _equivalence_values(row: VariantResult) -> Mapping[str, Any]:
    low, high = (row.difference.equivalence if row.difference else None) or (None, None)
    return {"equivalence_low": low, "equivalence_high": high}

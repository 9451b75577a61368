"""The sentence under each figure, computed from the numbers that the figure shows."""

from __future__ import annotations

from flagformer.study.formatting import MINUS, listed, plural, short
from flagformer.study.report.columns import setting_text
from flagformer.study.results import BITS, Results, VariantResult
from flagformer.study.statistics import MOST_SEEDS, seeds_needed, spread

SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
RESOLVED = 0.01  # nats; the difference that the power line speaks of
KEPT = 0.1  # bits per byte: a loss of quality below this is called none
LOST = 0.5


def curves_finding(results: Results, final: dict[str, float]) -> str:
    """Who ends lowest. `final` is each variant's mean training loss over the last tenth of its steps."""
    if not final:
        return "No trial has logged a step yet."
    ranked = sorted(final, key=lambda name: final[name])
    best, worst = ranked[0], ranked[-1]
    if best == worst:
        return f"{best} ends at {final[best]:.3f} nats."
    return (
        f"In the last tenth of the steps {best} has the lowest training loss, {final[best]:.3f} nats, "
        f"and {worst} the highest, {final[worst]:.3f}."
    )


def lengths_finding(results: Results) -> str:
    """Who keeps its quality at the longest test length, and who loses it."""
    rows = [row for row in results.rows if _change(row, results.loss_length) is not None]
    if not rows:
        return "No trial is finished yet."
    trained, long = results.loss_length, max(rows[0].quality)
    if trained == long:
        return f"Only one length, {long} tokens, was tested."
    sign = 1 if results.metric == BITS else -1
    change = {row.variant: sign * (_change(row, trained) or 0.0) for row in rows}
    groups = (
        ("keep theirs or gain", [name for name, value in change.items() if value <= KEPT]),
        (f"lose up to {LOST:g}", [name for name, value in change.items() if KEPT < value <= LOST]),
        (f"lose more than {LOST:g}", [name for name, value in change.items() if value > LOST]),
    )
    parts = []
    for verb, names in groups:
        ranked = sorted(names, key=lambda name: change[name])
        changes = [f"{name} ({f'{sign * change[name]:+z.2f}'.replace('-', MINUS)})" for name in ranked]
        if changes:
            parts.append(f"{listed(changes)} {verb}")
    return f"From {trained} to {long} tokens, in {results.metric}: {'; '.join(parts)}."


def differences_finding(results: Results) -> str:
    """Which differences from the baseline are resolved."""
    rows = [row for row in results.rows if row.difference is not None]
    if not rows:
        return "There is only one variant, so there is nothing to compare."
    if all(row.difference is None or row.difference.estimate.n < 2 for row in rows):
        return "A difference needs at least two finished seeds of both the variant and the baseline."
    groups: dict[str, list[str]] = {
        "better": [], "worse": [], "equivalent": [], "not resolved": [], "invalid": [],
    }  # fmt: skip
    for row in rows:
        if row.difference is not None:
            groups[row.difference.verdict].append(row.variant)
    parts = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {verdict}"
        for verdict, names in groups.items()
        if names
    ]
    return (
        f"In held-out loss at {results.loss_length} tokens, against {results.study.baseline} with "
        f"{plural(len(results.study.seeds), 'seed')}: {'; '.join(parts)}."
    )


def power_line(results: Results) -> str:
    """How many seeds a small difference takes, from the spread of the differences seen."""
    sigma = spread([row.difference.estimate for row in results.rows if row.difference is not None])
    if sigma is None:
        return ""
    wanted = results.study.margin or RESOLVED
    needed = seeds_needed(wanted, sigma)
    seeds = f"more than {MOST_SEEDS:,} seeds" if needed is None else f"n = {plural(needed, 'seed')}"
    return (
        f"To resolve {wanted:g} nats at {SIGMA} {sigma:.3g} (the spread of single differences) "
        f"you need {seeds}, for four cases in five at p < 0.05 before correction."
    )


def tuning_finding(results: Results) -> str:
    """What tuning chose, how many runs each variant had, and who would want a wider grid."""
    if not results.study.tune:
        return ""
    chosen = listed([f"{row.variant} {setting_text(row.tuned)}" for row in results.rows])
    tried = plural(len(results.study.candidates), "candidate")
    edges = [row.variant for row in results.rows if row.at_edge]
    warning = (
        f" The best of {listed(edges)} lies at the edge of the grid: a wider one may serve "
        f"{'it' if len(edges) == 1 else 'them'} "
        "better, and the verdicts above may change."
        if edges
        else ""
    )
    return (
        f"Best by validation: {chosen}. Every variant had {tried} with "
        f"{plural(len(results.study.seeds), 'seed')} each, "
        f"{plural(len(results.study.candidates) * len(results.study.seeds), 'run')}.{warning}"
    )


def position_finding(results: Results) -> str:
    """Who is best at the end of the longest row."""
    last = {row.variant: row.by_position[-1] for row in results.rows if row.by_position}
    if not last:
        return "No trial is finished yet."
    best = min(last, key=lambda name: last[name])
    return (
        f"At the end of rows of {max(results.rows[0].quality)} tokens {best} has the lowest loss, "
        f"{last[best]:.3f} nats."
    )


def invalid_line(results: Results) -> str:
    """Which variants failed the audit, and what that means; empty where none did."""
    lines = [
        f"{row.variant} failed the audit ({'; '.join(row.stamp.failures)[:400]}): its loss is not "
        f"that of a model that "
        "may be compared, and no verdict is given."
        for row in results.rows
        if row.stamp.invalid
    ]
    return " ".join(lines)


def speed_finding(results: Results) -> str:
    """The fastest and the slowest variant, with the range of their seeds, and whether the ranges meet."""
    rows = [row for row in results.rows if row.tokens_per_second is not None and row.speed_range is not None]
    if not rows:
        return "No trial is finished yet."
    rows.sort(key=lambda row: row.tokens_per_second or 0.0)
    slow, fast = rows[0], rows[-1]
    if slow is fast:
        return f"{fast.variant} trains at {short(fast.tokens_per_second)} tokens a second."
    apart = (slow.speed_range or (0, 0))[1] < (fast.speed_range or (0, 0))[0]
    trust = (
        "their seeds do not overlap" if apart else "their seeds overlap, so this is no difference to rely on"
    )
    return (
        f"{fast.variant} trained fastest, {short(fast.tokens_per_second)} tokens a second, "
        f"and {slow.variant} slowest, {short(slow.tokens_per_second)}; {trust}."
    )


def headline(results: Results) -> str:
    """One sentence for the top of the page."""
    done, total = results.count("finished", "diverged"), len(results.trials)
    rows = [row for row in results.rows if row.loss.mean is not None and not row.stamp.invalid]
    if not rows:
        known = any(row.loss.mean is not None for row in results.rows)
        return "Every variant failed the audit." if known else f"No trial is finished yet ({total} planned)."
    best = min(rows, key=lambda row: row.loss.mean if row.loss.mean is not None else float("inf"))
    unfinished = "" if done == total else f" {done} of {total} trials are finished so far."
    return (
        f"Lowest held-out loss at {results.loss_length} tokens: {best.variant}, {best.loss.mean:.3f} nats "
        f"(mean of {plural(best.loss.n, 'seed')}{_against_baseline(results, best)})."
        f"{_best_at_longest(results)}{unfinished}"
    )


def _against_baseline(results: Results, row: VariantResult) -> str:
    if row.difference is None:
        return "; the baseline"
    how = {
        "not resolved": "not resolved from",
        "equivalent": "equivalent to",
        "invalid": "INVALID, not compared with",
    }
    verdict = row.difference.verdict
    return f"; {how.get(verdict, f'{verdict} than')} {results.study.baseline}"


def _best_at_longest(results: Results) -> str:
    longest = max(results.rows[0].quality)
    means = {row.variant: row.quality[longest].mean for row in results.rows if not row.stamp.invalid}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if longest == results.loss_length or not known:
        return ""
    best = (min if results.metric == BITS else max)(known, key=lambda name: known[name])
    return f" Best at {longest} tokens: {best}, {known[best]:.3f} {results.metric}."


def _change(row: VariantResult, trained: int) -> float | None:
    """Quality at the longest length minus quality at `trained`."""
    first, last = row.quality[trained].mean, row.quality[max(row.quality)].mean
    return None if first is None or last is None else last - first

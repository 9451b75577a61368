"""The sentence under each figure, generated from the numbers in the figure."""

from __future__ import annotations

from flagformer.lab.study.formatting import MINUS, listed, plural, short
from flagformer.lab.study.power import MOST_SEEDS, POWER, difference_found, noise_of, seeds_needed
from flagformer.lab.study.report.columns import setting_text
from flagformer.lab.study.results import BITS, Results, VariantResult

SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
RESOLVED = 0.01  # nats; the difference in the sentence on statistical power
KEPT = 0.1  # bits per byte; a smaller degradation counts as none
LOST = 0.5


def curves_finding(results: Results, final: dict[str, float]) -> str:
    """The variants with the lowest and highest final loss; `final` maps variants to their mean training loss
    over the last tenth of the steps."""
    if not final:
        return "No trial has logged a step yet."
    ranked = sorted(final, key=lambda name: final[name])
    best, worst = ranked[0], ranked[-1]
    if best == worst:
        return f"{best} ends at {final[best]:.3f} {results.unit}."
    return (
        f"In the last tenth of the steps {best} has the lowest training loss, {final[best]:.3f} "
        f"{results.unit}, and {worst} the highest, {final[worst]:.3f}."
    )


def lengths_finding(results: Results) -> str:
    """The change of every variant's quality at the longest test length."""
    rows = [row for row in results.rows if _change(row, results.loss_length) is not None]
    if not rows:
        return "No trial is finished yet."
    trained, long = results.loss_length, max(rows[0].quality)
    if trained == long:
        return f"Only one length, {long} tokens, was tested."
    sign = 1 if results.metric == BITS else -1
    change = {row.variant: sign * (_change(row, trained) or 0.0) for row in rows}
    groups = (
        ("no loss", [name for name, value in change.items() if value <= KEPT]),
        (f"a loss of up to {LOST:g}", [name for name, value in change.items() if KEPT < value <= LOST]),
        (f"a loss of more than {LOST:g}", [name for name, value in change.items() if value > LOST]),
    )
    parts = []
    for label, names in groups:
        ranked = sorted(names, key=lambda name: change[name])
        changes = [f"{name} ({f'{sign * change[name]:+z.2f}'.replace('-', MINUS)})" for name in ranked]
        if changes:
            parts.append(f"{label} for {listed(changes)}")
    return f"Change of {results.metric} from {trained} to {long} tokens: {'; '.join(parts)}."


def differences_finding(results: Results) -> str:
    """The verdicts on the differences from the baseline."""
    rows = [row for row in results.rows if row.difference is not None]
    if not rows:
        return "There is only one variant, so there is nothing to compare."
    if all(row.difference is None or row.difference.estimate.n < 2 for row in rows):
        return "A difference needs at least two finished seeds of both the variant and the baseline."
    groups: dict[str, list[str]] = {
        "better": [], "worse": [], "equivalent": [], "not resolved": [], "unstable": [], "invalid": [],
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
        f"Held-out loss at {results.loss_length} tokens compared with {results.study.reference}, "
        f"{plural(len(results.study.seeds), 'seed')}: {'; '.join(parts)}."
    )


def power_line(results: Results) -> str:
    """The difference that this study finds with probability 0.8, and the seeds that a small one needs."""
    apart = [row.difference.estimate for row in results.rows if row.difference is not None]
    noise = noise_of([row.loss for row in results.rows], apart)
    if noise is None or not apart:
        return ""
    seeds = min(max(one.n for one in apart), MOST_SEEDS)
    variants, level = len(results.study.contenders) - 1, results.study.level
    found = difference_found(noise, variants, seeds, POWER, level)
    if found is None:
        return ""
    wanted = results.study.margin or RESOLVED
    needed = seeds_needed(wanted, noise, variants, POWER, level)
    enough = f"more than {MOST_SEEDS}" if needed is None else str(needed)
    return (
        f"With {plural(seeds, 'seed')} and {SIGMA} = {noise.sigma:.3g} (standard deviation of a run over "
        f"seeds; correlation {noise.correlation:.1f} of two variants of one seed) a difference of "
        f"{found:.2g} {results.unit} is found with probability {POWER:g}; one of {wanted:g} {results.unit} "
        f"needs {enough} seeds."
    )


def tuning_finding(results: Results) -> str:
    """The chosen settings, the number of runs, and the variants whose best value is at the grid's edge."""
    if not results.study.tune:
        return ""
    chosen = listed([f"{row.variant} {setting_text(row.tuned)}" for row in results.rows])
    tried = plural(len(results.study.candidates), "candidate")
    edges = [row.variant for row in results.rows if row.at_edge]
    warning = (
        f" The best setting of {listed(edges)} is at the edge of the grid: a wider grid may improve "
        f"{'it' if len(edges) == 1 else 'them'} and change the verdicts above."
        if edges
        else ""
    )
    return (
        f"Best by validation loss: {chosen}. Every variant had {tried} with "
        f"{plural(len(results.study.seeds), 'seed')} each, "
        f"{plural(len(results.study.candidates) * len(results.study.seeds), 'run')} in total.{warning}"
    )


def position_finding(results: Results) -> str:
    """The variant with the lowest loss at the end of the longest rows."""
    last = {row.variant: row.by_position[-1] for row in results.rows if row.by_position}
    if not last:
        return "No trial is finished yet."
    best = min(last, key=lambda name: last[name])
    return (
        f"At the end of rows of {max(results.rows[0].quality)} tokens {best} has the lowest loss, "
        f"{last[best]:.3f} {results.unit}."
    )


def invalid_line(results: Results) -> str:
    """The variants that failed the audit, and the consequence; empty if none did."""
    lines = [
        f"{row.variant} failed the audit ({'; '.join(row.stamp.failures)[:400]}): its loss is not "
        "comparable, and it gets no verdict."
        for row in results.rows
        if row.stamp.invalid
    ]
    return " ".join(lines)


def unstable_line(results: Results) -> str:
    """The variants of which a seed diverged; empty if none did."""
    lines = [
        f"{row.variant} is unstable: {row.diverged} of {plural(len(results.study.seeds), 'seed')} diverged"
        f"{_consequence(results, row)}."
        for row in results.rows
        if row.diverged
    ]
    return " ".join(lines)


def _consequence(results: Results, row: VariantResult) -> str:
    if row.variant == results.study.baseline_of(row.variant):
        return ", so no variant gets a verdict against it"
    return ", so the seeds that are left give no verdict"


def speed_finding(results: Results) -> str:
    """The fastest and the slowest variant, and the speeds relative to the baseline, paired by seed."""
    rows = [row for row in results.rows if row.tokens_per_second is not None and row.speed_range is not None]
    if not rows:
        return "No trial is finished yet."
    rows.sort(key=lambda row: row.tokens_per_second or 0.0)
    slow, fast = rows[0], rows[-1]
    if slow is fast:
        return f"{fast.variant} trains at {short(fast.tokens_per_second)} tokens per second."
    return (
        f"{fast.variant} trained fastest, {short(fast.tokens_per_second)} tokens per second, "
        f"and {slow.variant} slowest, {short(slow.tokens_per_second)}.{_speed_ratios(results)}"
    )


def _speed_ratios(results: Results) -> str:
    """The resolved ratios of speed with their intervals, for all variants together."""
    known = [
        (row.variant, row.speed_ratio)
        for row in results.rows
        if row.speed_ratio is not None and row.speed_ratio.estimate.low is not None
    ]
    if not known:
        return ""
    resolved = [
        f"{name} {one.estimate.mean:.2f} [{one.estimate.low:.2f}, {one.estimate.high:.2f}]"
        for name, one in known
        if one.verdict in ("faster", "slower")
    ]
    others = [name for name, one in known if one.verdict not in ("faster", "slower")]
    rest = f"{'; ' if resolved else ''}not resolved: {listed(others)}" if others else ""
    return f" Speed relative to {results.study.reference}, paired by seed: {', '.join(resolved)}{rest}."


def headline(results: Results) -> str:
    """The sentence at the top of the page."""
    done, total = results.count("finished", "diverged"), len(results.trials)
    rows = [row for row in results.rows if row.loss.mean is not None and not row.stamp.invalid]
    if not rows:
        known = any(row.loss.mean is not None for row in results.rows)
        return "Every variant failed the audit." if known else f"No trial is finished yet ({total} planned)."
    best = min(rows, key=lambda row: row.loss.mean if row.loss.mean is not None else float("inf"))
    unfinished = "" if done == total else f" {done} of {total} trials are finished so far."
    return (
        f"Lowest held-out loss at {results.loss_length} tokens: {best.variant}, {best.loss.mean:.3f} "
        f"{results.unit} (mean of {plural(best.loss.n, 'seed')}{_against_baseline(results, best)})."
        f"{_best_at_longest(results)}{unfinished}"
    )


def _against_baseline(results: Results, row: VariantResult) -> str:
    if row.difference is None:
        return "; the baseline"
    phrases = {
        "not resolved": "difference not resolved from",
        "equivalent": "equivalent to",
        "unstable": "unstable, not compared with",
        "invalid": "INVALID, not compared with",
    }
    verdict = row.difference.verdict
    return f"; {phrases.get(verdict, f'{verdict} than')} {results.study.reference}"


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

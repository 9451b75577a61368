"""The table of a study in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flagformer.lab.study.formatting import NOTHING, count, difference, estimate, listed, plural, short
from flagformer.lab.study.planned import change_line
from flagformer.lab.study.report.columns import best_setting
from flagformer.lab.study.report.findings import invalid_line, power_line, tuning_finding, unstable_line
from flagformer.lab.study.report.interactions import HEADS, effect_rows, effects_finding
from flagformer.lab.study.results import Results, VariantResult

SHORT = {"bits per byte": "bpb", "accuracy": "acc"}  # names of metrics in headings
WIDTH = 132  # without a terminal


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the table with its legend and the list of missing trials."""
    console = console_of_width(console)
    console.print(make_table(results))
    if results.effects:
        console.print(effects_table(results))
    for line in legend(results):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def console_of_width(console: Console | None = None) -> Console:
    """The console, by default of standard output; without a terminal it has 132 columns."""
    console = console or Console()
    return console if console.is_terminal else Console(file=console.file, width=WIDTH)


def make_table(results: Results) -> Table:
    """One row per variant, the baseline first."""
    table = Table(
        box=box.SIMPLE_HEAD, title=results.study.name, title_justify="left", pad_edge=False, padding=(0, 0)
    )
    table.add_column("variant", no_wrap=True)
    unit = SHORT.get(results.metric, results.metric)
    names = ["params", "FLOPs per token", "tokens/s*", f"loss@{results.loss_length}"]
    names += [f"{unit}@{length}" for length in results.rows[0].quality]
    names += [f"vs {results.study.reference}", "verdict", "audit"]
    if results.study.tune:
        names.append("best setting")
    for name in names:
        left = name in ("verdict", "audit", "best setting")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for row in results.rows:
        tuned = [best_setting(row)] if results.study.tune else []
        table.add_row(*_cells(row), _audit(row), *tuned)
    return table


def effects_table(results: Results) -> Table:
    """The effects of a factorial study: in each cell, on average, and interactions."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEADS:
        table.add_column(name, justify="right" if name == "difference" else "left", overflow="fold")
    for row in effect_rows(results):
        table.add_row(*(escape(cell) for cell in row))
    return table


def legend(results: Results) -> list[str]:
    """An explanation of the columns, and the missing trials."""
    length = results.loss_length
    loss = f"loss@{length}: held-out {results.unit} per scored token at {length} tokens"
    quality = f"{SHORT.get(results.metric, results.metric)}@N: {results.metric} at N tokens"
    if results.chance is not None:
        quality += f" (chance {results.chance:.3g})"
    lines = [
        f"{loss}, mean ± 95 % t interval over {plural(len(results.study.seeds), 'seed')}; {quality}; "
        f"vs {results.study.reference}: difference in loss, paired by seed, with the 95 % interval for all "
        "variants together. * measured: varies from run to run."
    ]
    notes = (power_line(results), tuning_finding(results), invalid_line(results), unstable_line(results))
    lines += [line for line in (*notes, effects_finding(results)) if line]
    lines += [line for line in [change_line(results.study, results.design)] if line]
    for state in ("failed", "diverged", "unfinished", "waiting"):
        labels = [trial.run.label for trial in results.trials if trial.state == state]
        if labels:
            shown = labels if len(labels) <= 6 else [*labels[:5], f"{len(labels) - 5} more"]
            lines.append(f"{state} ({len(labels)}): {listed(shown)}")
    return lines


def _audit(row: VariantResult) -> str:
    if not row.stamp.found:
        return row.stamp.remark or NOTHING
    return "INVALID" if row.stamp.invalid else "valid"


def _cells(row: VariantResult) -> list[str]:
    mean = [NOTHING if quality.mean is None else f"{quality.mean:.3f}" for quality in row.quality.values()]
    cells = [
        row.variant,
        count(row.params),
        short(row.flops_per_token),
        short(row.tokens_per_second),
        estimate(row.loss),
        *mean,
    ]
    if row.difference is None:
        return [*cells, "baseline", ""]
    return [*cells, difference(row.difference), row.difference.verdict]

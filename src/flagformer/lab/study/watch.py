"""`flagformer study watch DIR`: the progress of a study and its current table, from its files."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flagformer.lab.study.read_results import read_results
from flagformer.lab.study.results import Results, TrialState
from flagformer.lab.study.table import console_of_width, legend, make_table

PENDING = ("unfinished", "waiting")
MOST_SHOWN = 12


def watch(directory: Path, every: float = 2.0, once: bool = False, console: Console | None = None) -> Results:
    """Show the study in `directory` until every trial has ended; once with `once` or without a terminal.

    Args:
        every: seconds between updates.

    Raises:
        ValueError: the directory contains no study.
    """
    console = console_of_width(console)
    results = read_results(directory)
    if once or not console.is_terminal:
        console.print(render(results))
        return results
    with Live(render(results), console=console, auto_refresh=False) as live:
        while any(trial.state in PENDING for trial in results.trials):
            time.sleep(every)
            results = read_results(directory)
            live.update(render(results), refresh=True)
    return results


def render(results: Results) -> Group:
    """The number of trials by state, a progress bar for every running trial, and the table."""
    states = ("finished", "diverged", "failed", "unfinished", "waiting")
    counts = ", ".join(f"{results.count(state)} {state}" for state in states if results.count(state))
    bars = Table.grid(padding=(0, 2))
    running = [trial for trial in results.trials if trial.state == "unfinished"]
    for trial in running[:MOST_SHOWN]:
        bars.add_row(*_bar(results, trial))
    more = [Text(f"... and {len(running) - MOST_SHOWN} more")] if len(running) > MOST_SHOWN else []
    head = Text(f"{results.study.name}: {len(results.trials)} trials, {counts}")
    return Group(head, bars, *more, make_table(results), *(Text(line) for line in legend(results)))


def _bar(results: Results, trial: TrialState) -> tuple[Text, ProgressBar, str]:
    steps = results.study.train_of(trial.run.variant).steps
    return (
        Text(trial.run.label),
        ProgressBar(total=steps, completed=trial.steps, width=24),
        f"step {trial.steps:,} of {steps:,}",
    )

"""`flagformer audit CONFIG`: every check on a model, or on every variant of a study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flagformer.audit import AuditReport

POSITION, NUMBERS = 4, (2, 3, 4)
STYLES = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


def audit(
    config: Annotated[
        Path,
        typer.Argument(help="YAML of flags, a training or study file, or a saved model's directory."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="For example depth=2, or base.depth=2 for a study."),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens per row; 32, or the longest input if that is shorter.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the ids.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as one JSON object.")] = False,
    allow: Allow = None,
) -> None:
    """Check models for leaks, padding, packing, cache, batch independence, gradients and overflow.

    Exit status: 0 if every model passes, 1 if one fails, 2 if the input is wrong.
    """
    with clear_errors(), allowing(allow):
        reports = audited(config, overrides or [], seq_len, seed, allow or [], show=not as_json)
        if as_json:
            typer.echo(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))
        if not all(report.passed for report in reports.values()):
            raise SystemExit(1)


def audited(
    config: Path,
    overrides: list[str],
    seq_len: int | None,
    seed: int,
    allow: Sequence[str] = (),
    *,
    show: bool,
) -> dict[str, AuditReport]:
    """A report for each model that `config` names, printed as soon as it is ready."""
    import torch
    from rich.console import Console

    from flagformer.audit import audit as audit_model
    from flagformer.lab.cli.models import named_models

    console = Console(highlight=False)
    models = named_models(config, overrides, allow)
    reports = {}
    for name, named in models.items():
        torch.manual_seed(seed)
        model = named.build()
        reports[name] = audit_model(model, seq_len=seq_len, seed=seed, precision=named.precision)
        if show:
            print_report(console, name, reports[name], brief=len(models) > 1)
    if show and len(reports) > 1:
        console.print(summary(reports), markup=False)
    return reports


def print_report(console: Console, name: str, report: AuditReport, *, brief: bool) -> None:
    """Print the summary line, and the table unless the model is one of several and passed."""
    from flagformer.audit.report import reasons, summary_of

    style = "bold" if report.passed else "bold red"
    console.print(f"{name}: {summary_of(report)}", style=style, markup=False)
    if brief and report.passed:
        return
    console.print(table(report))
    for reason in reasons(report):
        console.print(reason, style="dim", markup=False)
    console.print()


def table(report: AuditReport) -> Table:
    """One row for each check; the column of positions only if there are any."""
    from rich.table import Table
    from rich.text import Text

    from flagformer.audit.report import HEADINGS, cells

    rows = [cells(result) for result in report]
    shown = [
        column for column in range(len(HEADINGS)) if column != POSITION or any(row[column] for row in rows)
    ]
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in shown:
        grid.add_column(
            HEADINGS[column], no_wrap=column < POSITION, justify="right" if column in NUMBERS else "left"
        )
    for result, row in zip(report, rows, strict=True):
        texts = [Text(cell) for cell in row]
        texts[1].stylize(STYLES[result.status])
        grid.add_row(*(texts[column] for column in shown))
    return grid


def summary(reports: dict[str, AuditReport]) -> str:
    failed = [name for name, report in reports.items() if not report.passed]
    if not failed:
        return f"all {len(reports)} models pass"
    return f"{len(failed)} of {len(reports)} models fail: {', '.join(failed)}"

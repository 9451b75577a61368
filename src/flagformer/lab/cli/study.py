"""`flagformer study run`, `flagformer study report` and `flagformer study watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors
from flagformer.lab.cli.own_code import with_own_code

if TYPE_CHECKING:
    from flagformer.lab.study.results import Results
    from flagformer.lab.study.run import Prepared

study = typer.Typer(no_args_is_help=True, help="Compare variants of a model with several seeds each.")


@study.command()
@with_own_code
def run(
    file: Annotated[Path, typer.Argument(help="The YAML file of the study.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Changes to the file: train.steps=50 compare.rotary.rotary_emb_dim=16",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. [default: runs/NAME]", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, build every variant, train nothing.")
    ] = False,
    allow: Allow = None,
) -> None:
    """Run or resume a study: finished trials are kept, the others resume from their checkpoints."""
    with clear_errors(), allowing(allow):
        from flagformer.lab.study.run import prepare, run_study
        from flagformer.lab.train.process_group import by_torchrun

        if by_torchrun():
            raise ValueError("a study starts its own processes: leave `torchrun` to `flagformer train`")
        prepared = prepare(file, overrides or [])
        if dry_run:
            _print_plan(prepared, out)
            return
        results = run_study(prepared, out)
        _print_results(results)
        failed = results.count("failed")
        if failed:
            typer.echo(
                f"error: {failed} of {len(results.trials)} trials failed; run the same command again to "
                "retry them",
                err=True,
            )
            raise typer.Exit(1)


@study.command()
@with_own_code
def report(
    directory: Annotated[Path, typer.Argument(help="The run directory of a study.")], allow: Allow = None
) -> None:
    """Generate results.json and the report (HTML, Markdown, CSV, LaTeX) from the finished trials, and print
    the table."""
    with clear_errors(), allowing(allow):
        from flagformer.lab.study.run import write_report

        _print_results(write_report(directory))


@study.command()
@with_own_code
def watch(
    directory: Annotated[Path, typer.Argument(help="The run directory of a study.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    allow: Allow = None,
) -> None:
    """Show the progress of a study and its current table until every trial has ended."""
    with clear_errors(), allowing(allow):
        from flagformer.lab.study.watch import watch as watch_study

        watch_study(directory, every, once)


@study.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors that complete and check them."""
    with clear_errors():
        import json

        from flagformer.lab.reference.study_schema import study_schema

        typer.echo(json.dumps(study_schema(), indent=2))


def _print_results(results: Results) -> None:
    from flagformer.lab.study.directory import REPORT
    from flagformer.lab.study.table import print_table

    print_table(results)
    typer.echo(f"report: {results.directory / REPORT}")


def _print_plan(prepared: Prepared, out: Path | None) -> None:
    from rich import box
    from rich.table import Table

    from flagformer.lab.study.formatting import count, flags_text, plural, short, size
    from flagformer.lab.study.planned import pilot_of, power_lines, stated_tests
    from flagformer.lab.study.resources import share_out
    from flagformer.lab.study.table import console_of_width
    from flagformer.ops.memory import GIB

    study = prepared.study
    directory = out or Path("runs") / study.name
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("variant", "parameters", "FLOPs/token", "memory", "tokens", "changes"):
        table.add_column(name, justify="left" if name in ("variant", "changes") else "right", overflow="fold")
    for name, cost in prepared.costs.items():
        copy = f" (copy {study.copies[name]}: other initial weights)" if study.copies[name] else ""
        table.add_row(
            name, count(cost.params), short(cost.flops_per_token), size(cost.memory_bytes),
            count(study.tokens_of(name)), flags_text(study.compare[name]) + copy,
        )  # fmt: skip
    console_of_width().print(table, markup=False)
    for name, one in prepared.matched.items():
        typer.echo(
            f"{name}: matched to the {study.match.what} of {study.baseline_of(name)} by `{one.knob}`, "
            f"{one.before:g} -> {one.after:g} ({count(one.amount)} of {count(one.wanted)})"
        )
    for line in stated_tests(study):
        typer.echo(f"test: {line}")
    for line in power_lines(study, pilot_of(study, directory)):
        typer.echo(line)
    tries = f" x {plural(len(study.candidates), 'candidate')}" if study.tune else ""
    plan = share_out(study, prepared.costs)
    typer.echo(
        f"{plural(len(study.runs), 'trial')}: {plural(len(study.compare), 'variant')} x "
        f"{plural(len(study.seeds), 'seed')}{tries}, "
        f"{study.train.steps:,} steps each; {plan.at_once} in parallel ({plan.why}) with "
        f"{plural(plan.threads, 'thread')} and about {plan.trial / GIB:.1f} GiB each, in "
        f"{directory}"
    )

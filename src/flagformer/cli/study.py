"""`flagformer study run` and `flagformer study report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagformer.cli.errors import clear_errors

if TYPE_CHECKING:
    from flagformer.study.results import Results
    from flagformer.study.run import Prepared

study = typer.Typer(no_args_is_help=True, help="Compare variants of a model with several seeds each.")


@study.command()
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
) -> None:
    """Run a study, or go on with one: finished trials are kept, the others go on from their checkpoints."""
    with clear_errors():
        from flagformer.study.run import prepare, run_study
        from flagformer.train.ranks import by_torchrun

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
def report(directory: Annotated[Path, typer.Argument(help="The run directory of a study.")]) -> None:
    """Make results.json and report.html again from what is finished, and print the table."""
    with clear_errors():
        from flagformer.study.run import write_report

        _print_results(write_report(directory))


def _print_results(results: Results) -> None:
    from flagformer.study.directory import REPORT
    from flagformer.study.table import print_table

    print_table(results)
    typer.echo(f"report: {results.directory / REPORT}")


def _print_plan(prepared: Prepared, out: Path | None) -> None:
    from flagformer.study.shares import GIB, share_out
    from flagformer.study.wording import count, flags_text, plural, short

    study = prepared.study
    for name, cost in prepared.costs.items():
        size = f"{count(cost.params)} parameters, {short(cost.flops_per_token)} FLOPs/token"
        typer.echo(f"{name}: {size}; {flags_text(study.compare[name])}")
    shares = share_out(study)
    typer.echo(
        f"{plural(len(study.runs), 'trial')}: {plural(len(study.compare), 'variant')} x "
        f"{plural(len(study.seeds), 'seed')}, "
        f"{study.train.steps:,} steps each; {shares.at_once} at once ({shares.why}) with "
        f"{plural(shares.threads, 'thread')} and about {shares.trial / GIB:.1f} GiB each, in "
        f"{out or Path('runs') / study.name}"
    )

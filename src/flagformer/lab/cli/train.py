"""`flagformer train FILE.yaml`: one trial in this process, with a progress line."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors, leave

if TYPE_CHECKING:
    from flagformer.lab.cli.runfile import RunFile
    from flagformer.lab.train.config import Trial
    from flagformer.lab.train.process_group import ProcessGroup


def train(
    file: Annotated[Path, typer.Argument(help="YAML with base, and optionally data, train, evaluate, seed.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="For example train.steps=50 base.depth=4."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory. [default: runs/NAME]")] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="The directory of a model that training starts from, as base.from."),
    ] = None,
    allow: Allow = None,
) -> None:
    """Train and evaluate one model. Run the same command again to resume from the last checkpoint.

    On several devices: torchrun --nproc-per-node 2 -m flagformer train FILE.yaml
    """
    with clear_errors(), allowing(allow):
        from flagformer.lab.study.starting import override_of
        from flagformer.lab.train.process_group import RemoteRankError, by_torchrun, exit_rank, joined

        changes = [*(overrides or []), *([] if start is None else [override_of(start)])]
        if not by_torchrun():
            _train(file, changes, out)
            return
        try:
            with joined():
                _train(file, changes, out)
        except RemoteRankError:
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            if int(os.environ["RANK"]):  # rank 0 reports it
                raise SystemExit(130) from None
            raise
        exit_rank()


def _train(file: Path, overrides: list[str], out: Path | None) -> None:
    """Train in this process; rank 0 reads the file and prints."""
    import torch

    from flagformer.lab.cli.runfile import load_run
    from flagformer.lab.study.capacity import check_machine
    from flagformer.lab.train.process_group import SINGLE, Distributed, ProcessGroup, by_torchrun

    together = Distributed("ddp") if by_torchrun() else None
    reader: ProcessGroup = together or SINGLE

    def read() -> "tuple[RunFile, Trial, Path]":
        run, trial = load_run(file, overrides)
        directory = out or Path("runs") / (run.name or file.stem)
        refuse_foreign(directory)
        if not (directory / "result.json").exists():
            check_machine(trial, alone=together is None)
        return run, trial, directory

    run, trial, directory = reader.on_rank_zero(read)
    if run.threads:
        torch.set_num_threads(run.threads)
    ranks = Distributed(run.parallel) if together else SINGLE
    result = run_with_progress(trial, directory, ranks)
    if not ranks.is_first:
        return
    show(result, directory)
    if result["status"] == "diverged":
        leave(
            f"training diverged: the loss of step {result['steps']} is not finite; "
            "lower `train.lr` or lengthen `train.warmup`, in another directory",
            status=1,
        )


def refuse_foreign(directory: Path) -> None:
    """Raise ValueError if `directory` is a file or contains files of something else."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"`--out` must be a directory, but {directory} is a file")
    if directory.is_dir() and not (directory / "trial.json").exists():
        strange = [
            path.name for path in directory.iterdir() if path.name not in ("trial.json.tmp", "training.lock")
        ]
        if strange:
            raise ValueError(
                f"`--out` must be new or an earlier run of this trial, but {directory} "
                f"contains {min(strange)!r} and no trial.json; use another directory"
            )


def run_with_progress(trial: "Trial", directory: Path, ranks: "ProcessGroup") -> dict[str, Any]:
    """`run_trial` with a progress line on standard error of rank 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flagformer.lab.train.stopping import Stopping
    from flagformer.lab.train.trial import run_trial

    stopping = Stopping(patient=ranks.world > 1)
    if not ranks.is_first or (directory / "result.json").exists():
        with stopping.handling():
            return run_trial(trial, directory, ranks=ranks, stopping=stopping)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]} {task.fields[unit]}, {task.fields[speed]} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(
            "training", total=trial.train.steps, loss="-", speed="-", unit=trial.trained_by.unit
        )

        def report(line: dict[str, Any]) -> None:
            loss = "-" if line["loss"] is None else f"{line['loss']:.3f}"
            progress.update(
                task, completed=line["step"], loss=loss, speed=f"{line['tokens_per_second']:,.0f}"
            )

        try:
            with stopping.handling():
                return run_trial(trial, directory, report, ranks, stopping)
        except KeyboardInterrupt as stop:
            text = f"stopped; run the same command again to resume from the last checkpoint in {directory}"
            raise KeyboardInterrupt(str(stop) or text) from None


def show(result: dict[str, Any], directory: Path) -> None:
    """Print the results, one row per test length."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    cost = result["cost"]
    _show_start(console, result.get("start") or {})
    console.print(
        f"{result['status']} after {result['steps']:,} steps: {result['params']:,} parameters, "
        f"{cost['seconds']:.1f} s of training, {cost['tokens_per_second']:,.0f} tokens/s",
        highlight=False,
    )
    for note in result["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    if not result["evaluation"]:
        return
    split = result["evaluation"][0]["split"]
    console.print(f"measured on the {split} split: {result['metric']}", highlight=False)
    table = Table()
    first = result["evaluation"][0]
    names = {"nats": first.get("unit", "nats"), "bits_per_byte": "bits/byte", "accuracy": "accuracy"}
    names |= {"exact_match": "exact match", "pseudo_perplexity": "pseudo-perplexity", "chance": "chance"}
    names = {key: heading for key, heading in names.items() if key in result["evaluation"][0]}
    own = list(result["evaluation"][0].get("metrics", {}))
    for heading in ("length", *names.values(), *own):
        table.add_column(heading, justify="right")
    for entry in result["evaluation"]:
        figures = [*(entry[key] for key in names), *(entry["metrics"][name] for name in own)]
        table.add_row(str(entry["seq_len"]), *("-" if value is None else f"{value:.4f}" for value in figures))
    console.print(table)
    console.print(f"model, log and result: {directory}", highlight=False, markup=False, soft_wrap=True)


def _show_start(console: Any, start: dict[str, Any]) -> None:
    """Print the loss before the first step of a model that training started from, and its graft."""
    if not start:
        return
    measured, grafted = start["evaluation"], start["graft"]
    loss = f"{measured['nats']:.4f} {measured.get('unit', 'nats')} at length {measured['seq_len']}"
    lines = [
        f"started from {start['from']['path']}: {loss}",
        *([grafted["line"]] if grafted["flags"] else []),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

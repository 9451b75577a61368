"""`flagformer track RUN --to NAME`: a run's log for TensorBoard, Weights & Biases or MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from flagformer.lab.cli.errors import clear_errors


def track(
    run: Annotated[Path, typer.Argument(help="The directory of a training run or of a study.")],
    to: Annotated[str, typer.Option(help="tensorboard, wandb or mlflow.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the tracker's files. [default: RUN/track]", show_default=False),
    ] = None,
) -> None:
    """Export the steps and results of a run, or of every trial of a study, to a tracker's local files."""
    with clear_errors():
        from flagformer.lab.train.track import track as track_runs

        count = track_runs(run, to, out)
        done = "no new runs" if not count else "1 run exported" if count == 1 else f"{count} runs exported"
        typer.echo(f"{done} to {to}: {out or run / 'track'}")

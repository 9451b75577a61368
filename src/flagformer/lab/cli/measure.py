"""`flagformer eval RUN` without tasks: a trained model on held-out data of its training file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from flagformer.lab.train.config import Trial

ABSENT = "has no `trial.json`; give the directory of a training or of a trial, or `--tasks`"


class Wanted(NamedTuple):
    """The options of the command; None: as in the training file."""

    split: str | None = None
    length: int | None = None
    batches: int | None = None
    stride: int | None = None
    each_token: bool = False


def trial_in(run: Path) -> Trial:
    """The settings of a run; ValueError where there are none."""
    from flagformer.lab.train.config import Trial
    from flagformer.lab.train.result import read_settings

    if not (run / "trial.json").is_file():
        raise ValueError(f"`RUN` {run} {ABSENT}")
    settings = read_settings(run / "trial.json")
    return Trial.model_validate({key: one for key, one in settings.items() if key != "id"})


def measure(run: Path, path: Path, wanted: Wanted, device: str, allow: Sequence[str]) -> None:
    """Evaluate the model of a run on its data, print the figures and write them as JSON."""
    import torch

    import flagformer
    from flagformer.lab.cli.described import model_folder
    from flagformer.lab.data import SPLITS
    from flagformer.storage.tensors import replace_file

    if wanted.split is not None and wanted.split not in SPLITS:
        raise ValueError(f"`--split` must be one of {', '.join(SPLITS)}, but is {wanted.split!r}")
    trial = trial_in(run)
    if wanted.batches is not None:
        trial = trial.model_copy(
            update={"evaluate": trial.evaluate.model_copy(update={"batches": wanted.batches})}
        )
    model = flagformer.load(model_folder(run), allow=allow).to(device).eval()
    with torch.no_grad():
        entries = [figures(model, trial, wanted, length) for length in lengths_of(trial, wanted)]
    found = {"run": str(run), "id": trial.id, "metric": trial.trained_by.metric(trial.source)}
    replace_file(path, (json.dumps({**found, "evaluation": entries}, indent=2) + "\n").encode())
    for entry in entries:
        typer.echo(", ".join(f"{key} {shown(value)}" for key, value in entry.items() if shown(value)))
    typer.echo(f"results: {path}")


def lengths_of(trial: Trial, wanted: Wanted) -> tuple[int, ...]:
    """The lengths to evaluate."""
    return trial.lengths if wanted.length is None else (wanted.length,)


def figures(model: Any, trial: Trial, wanted: Wanted, length: int) -> dict[str, Any]:
    """One entry: the evaluation of training, or the figures of a whole split or of each token."""
    from flagformer.lab.train.evaluation import evaluate
    from flagformer.lab.train.whole_split import perplexity_of_split, pseudo_perplexity

    split: Any = wanted.split or trial.evaluate.split
    where = {"split": split, "seq_len": length}
    if wanted.stride is not None:
        return where | perplexity_of_split(model, trial, split, length, wanted.stride)
    if wanted.each_token:
        return where | pseudo_perplexity(model, trial, split, length)
    trial.trained_by.check(trial.source, split, length)
    return evaluate(model, trial, split, length, answers=True)


def shown(value: Any) -> str:
    """A figure as text; empty for one that is absent or a list."""
    if value is None or isinstance(value, list | dict):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)

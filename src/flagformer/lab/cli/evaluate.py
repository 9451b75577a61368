"""`flagformer eval RUN`: a model on its held-out data, or on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors
from flagformer.lab.cli.measure import Wanted, measure
from flagformer.lab.cli.verify import output_path

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A directory of a training, of a trial of a study, of `model.save` or `save_pretrained`.",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="TASK[,TASK]",
        help="Tasks, groups or tags of lm_eval, or of --tasks-dir. [default: the data of RUN]",
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Examples of each task, the first ones. [default: all]")
]
TasksDir = Annotated[Path | None, typer.Option(help="A directory with YAML files of tasks.")]
Out = Annotated[Path | None, typer.Option(help="The results as JSON. [default: RUN.eval.json, next to RUN]")]
TokenizerPath = Annotated[
    Path | None,
    typer.Option(
        help="A tokenizer.json, or a directory with a tokenizer of transformers. [default: that of RUN]"
    ),
]
Fewshot = Annotated[
    int | None, typer.Option(min=0, help="Examples before a question. [default: as the task says]")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts of a batch.")]
Device = Annotated[str, typer.Option(help="A device of torch; auto: cuda if available.")]
SplitName = Annotated[
    str | None, typer.Option(help="Of the data of RUN: train, validation or test. [default: as trained]")
]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens of a row. [default: as trained]")]
Batches = Annotated[int | None, typer.Option(min=1, help="Batches. [default: as trained]")]
Stride = Annotated[
    int | None,
    typer.Option(min=1, help="All tokens of the split, in windows that begin every STRIDE tokens."),
]
EachToken = Annotated[
    bool, typer.Option("--each-token", help="Pseudo-perplexity: each token is masked alone.")
]


def evaluate(
    run: Run,
    tasks: Tasks = None,
    limit: Limit = None,
    tasks_dir: TasksDir = None,
    out: Out = None,
    tokenizer: TokenizerPath = None,
    num_fewshot: Fewshot = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    split: SplitName = None,
    length: Length = None,
    batches: Batches = None,
    stride: Stride = None,
    each_token: EachToken = False,
    allow: Allow = None,
) -> None:
    """Evaluate a trained model on its held-out data, or a causal language model on tasks of
    lm-evaluation-harness.

    Writes the results as JSON, in place of earlier ones. Without --tasks, RUN is a directory of training:
    loss, accuracy, exact match of generated answers and the other figures of its objective; with --stride the
    perplexity, bits per byte and bits per character of a whole text. --tasks needs
    `pip install 'flagformer[eval]'`; tasks with data on the Hugging Face Hub download it.
    """
    with clear_errors(), allowing(allow):
        wanted = Wanted(split, length, batches, stride, each_token)
        given = (limit, tasks_dir, tokenizer, num_fewshot)
        refuse_others(tasks, wanted, given)
        if tasks is None:
            measure(run, output_path(run, out, ".eval.json"), wanted, chosen_device(device), allow or [])
            return
        import flagformer
        from flagformer.lab.cli.described import model_folder
        from flagformer.lab.lm_eval.evaluate import TaskSettings, evaluate_model
        from flagformer.lab.lm_eval.requirement import load_lm_eval

        load_lm_eval()
        folder, path = model_folder(run), output_path(run, out, ".eval.json")
        settings = TaskSettings(task_names(tasks), tasks_dir, limit, num_fewshot)
        model = flagformer.load(folder, allow=allow or []).to(chosen_device(device))
        write_results(path, evaluate_model(model, folder, run, settings, tokenizer, batch_size))


def refuse_others(tasks: str | None, wanted: Wanted, given: tuple[Any, ...]) -> None:
    """Raise ValueError for an option of tasks without tasks, or of data with them."""
    if tasks is None:
        names = ("--limit", "--tasks-dir", "--tokenizer", "--num-fewshot")
        typed = [name for name, value in zip(names, given, strict=True) if value is not None]
        if typed:
            raise ValueError(f"`{typed[0]}` needs `--tasks`")
        if wanted.stride is not None and wanted.each_token:
            raise ValueError("`--stride` and `--each-token` must not both be given; choose one")
        return
    typed = [f"--{name.replace('_', '-')}" for name, value in wanted._asdict().items() if value]
    if typed:
        raise ValueError(f"`{typed[0]}` must be left out with `--tasks`")


def task_names(text: str) -> list[str]:
    """Names between commas; ValueError for none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("`--tasks` must name at least one task, but is empty")
    return names


def write_results(path: Path, found: dict[str, Any]) -> None:
    """Write the results as JSON, and print them as a table."""
    from flagformer.lab.lm_eval.evaluate import table_of
    from flagformer.storage.tensors import replace_file

    replace_file(path, (json.dumps(found, indent=2, default=str) + "\n").encode())
    typer.echo(table_of(found))
    typer.echo(f"results: {path}")


def chosen_device(name: str) -> str:
    """The name of a device that exists; ValueError for others."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`--device` must be a device of torch, but is {name!r}: {str(error).splitlines()[0]}"
        ) from None
    return name

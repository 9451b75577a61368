"""`flagformer eval RUN --tasks TASK,...`: a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors
from flagformer.lab.cli.verify import output_path


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A directory of a training, of a trial of a study, of `model.save` or `save_pretrained`.",
        ),
    ],
    tasks: Annotated[
        str, typer.Option(metavar="TASK[,TASK]", help="Tasks, groups or tags of lm_eval, or of --tasks-dir.")
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Examples of each task, the first ones. [default: all]")
    ] = None,
    tasks_dir: Annotated[Path | None, typer.Option(help="A directory with YAML files of tasks.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The results as JSON. [default: RUN.eval.json, next to RUN]")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A tokenizer.json, or a directory with a tokenizer of transformers. [default: that of RUN]"
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before a question. [default: as the task says]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts of a batch.")] = 8,
    device: Annotated[str, typer.Option(help="A device of torch; auto: cuda if available.")] = "auto",
    allow: Allow = None,
) -> None:
    """Evaluate a causal language model on tasks of lm-evaluation-harness.

    Prints a table and writes the results as JSON, in place of earlier ones. It needs
    `pip install 'flagformer[eval]'`. Tasks with data on the Hugging Face Hub download it.
    """
    with clear_errors(), allowing(allow):
        import flagformer
        from flagformer.lab.cli.described import model_folder
        from flagformer.lab.lm_eval.evaluate import TaskSettings, evaluate_model
        from flagformer.lab.lm_eval.requirement import load_lm_eval

        load_lm_eval()
        folder, path = model_folder(run), output_path(run, out, ".eval.json")
        settings = TaskSettings(task_names(tasks), tasks_dir, limit, num_fewshot)
        model = flagformer.load(folder, allow=allow or []).to(chosen_device(device))
        write_results(path, evaluate_model(model, folder, run, settings, tokenizer, batch_size))


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

"""Evaluation of a saved model on tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from flagformer.lab.lm_eval.requirement import load_lm_eval
from flagformer.lab.lm_eval.tokens import tokens_of

KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")
SCHEMA = 1


class TaskSettings(NamedTuple):
    """The tasks of an evaluation.

    Attributes:
        names: tasks, groups or tags.
        directory: with tasks of your own, which are searched first; None: lm_eval's tasks alone.
        limit: number of first examples of each task; None: all.
        num_fewshot: examples before each question; None: as the task says.
    """

    names: Sequence[str]
    directory: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None


def evaluate_model(
    model: Any,
    folder: Path,
    run: Path,
    tasks: TaskSettings,
    tokenizer: Path | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """The results of a model on tasks, for JSON.

    Args:
        model: a causal TransformerWrapper, on its device.
        folder: its directory.
        run: the directory of its training, or `folder`.
        tokenizer: in place of the one in `folder`, or of the training.

    Returns:
        The entries of `lm_eval.simple_evaluate` that do not depend on the machine, with the tasks, the
        tokenizer, the id of the token before a text, the longest input, and versions.

    Raises:
        ImportError: without lm_eval.
        ValueError: for a model that is not causal, a tokenizer that is not known, and tasks that are not
            found.
    """
    index = task_index(tasks)
    from flagformer.lab.lm_eval.adapter import FlagformerLM

    lm = FlagformerLM(model, tokens_of(model.num_tokens, folder, run, tokenizer), batch_size)
    found = load_lm_eval().simple_evaluate(
        model=lm,
        tasks=list(tasks.names),
        num_fewshot=tasks.num_fewshot,
        limit=tasks.limit,
        task_manager=index,
        log_samples=False,
    )
    return {
        "schema": SCHEMA,
        "model": str(folder),
        "tasks": list(tasks.names),
        "limit": tasks.limit,
        "tokenizer": lm.tokens.name,
        "prefix": lm.tokens.prefix,
        "max_length": lm.max_length,
        "packages": {name: version(name) for name in ("flagformer", "lm_eval", "torch")},
        **{name: found[name] for name in KEPT if name in found},
    }


def task_index(tasks: TaskSettings) -> Any:
    """A TaskManager that knows all tasks; ValueError for names that it does not know.

    Of lm_eval's thousands of tasks, files are read only where a name is not one of your own.
    """
    index_of = load_lm_eval("lm_eval.tasks").TaskManager
    directory = None if tasks.directory is None else str(tasks.directory)
    if tasks.directory is not None and not tasks.directory.is_dir():
        raise ValueError(f"`--tasks-dir` must be a directory, but {tasks.directory} is not one")
    if directory is not None:
        index = index_of(include_path=directory, include_defaults=False)
        if set(tasks.names) <= set(index.all_tasks):
            return index
    index = index_of(include_path=directory)
    unknown = [name for name in tasks.names if name not in index.all_tasks]
    if unknown:
        where = "" if directory is None else f" nor in {directory}"
        raise ValueError(
            f"`--tasks` must be tasks, groups or tags of lm_eval, but `{unknown[0]}` is not in it{where}: "
            "see `lm_eval ls tasks`"
        )
    return index


def table_of(found: dict[str, Any]) -> str:
    """The results as tables in Markdown."""
    make_table = load_lm_eval("lm_eval.utils").make_table
    tables = [make_table(found)]
    if found.get("groups"):
        tables.append(make_table(found, "groups"))
    return "\n".join(tables)

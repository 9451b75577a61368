"""Checks of own sources, objectives and metrics before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flagformer.flags.import_paths import place_of
from flagformer.lab.data import IGNORE, Source, Split
from flagformer.lab.imports import imported, raised_by
from flagformer.lab.objectives import Objective

ROWS = 2
Metric = Callable[[Tensor, Tensor], tuple[Any, Any]]


def refuse_wrong_batches(objective: Objective, source: Source, split: Split, seq_len: int) -> None:
    """Raise ValueError for an own source or objective whose batch raises an error, has another form, or
    differs in a second call; names its file and line."""
    own = [one for one in (objective, source) if _path_of(one)]
    if not own:
        return
    if _path_of(source) and source.form == "ids" and source.num_classes is None and not source.has_pairs:
        _refuse_wrong_ids(source, split, seq_len)
    first, second = (_batch(own, objective, source, split, seq_len) for _ in range(2))
    blamed = own[0]
    if len(first) < 2 or not all(isinstance(part, Tensor) and len(part) == ROWS for part in first):
        shapes = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in first]
        raise ValueError(
            f"{_named(blamed)} must give the inputs and the targets of {ROWS} rows, but gives {shapes}"
        )
    if not all(torch.equal(one, other) for one, other in zip(first, second)):
        raise ValueError(
            f"{_named(blamed)} must give equal batches for equal arguments, but a second call gives another "
            "one; draw random numbers from `flagformer.lab.data.draws(split, seed, step)`"
        )


def metric_of(path: str) -> Metric:
    """The function of a path in `evaluate.metrics`; ValueError if there is none."""
    found: Metric = imported(path, "metrics")
    return found


def metric_name(path: str) -> str:
    """The name of a metric in results: that of its function."""
    return path.rpartition(":")[2]


def measured(path: str, logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The sum and the count of a metric over a batch.

    Raises:
        ValueError: the function raises an error, or returns something other than two numbers.
    """
    metric = metric_of(path)
    try:
        total, count = metric(logits, targets)
        return float(total), float(count)
    except Exception as error:
        raise ValueError(
            f"`metrics`: {path} must return a sum and a count, but raised{raised_by(error, metric)}"
        ) from error


def _path_of(block: Source | Objective) -> str:
    """The import path of an own class; empty for one of the library."""
    name = block.model_dump()["source" if isinstance(block, Source) else "name"]
    return str(name) if ":" in str(name) else ""


def _named(block: Source | Objective) -> str:
    key = "source" if isinstance(block, Source) else "name"
    return f"`{key}`: {_path_of(block)}{place_of(type(block))}"


def _batch(
    own: list[Any], objective: Objective, source: Source, split: Split, seq_len: int
) -> tuple[Any, ...]:
    try:
        found = objective.batch(source, split, 0, 0, ROWS, seq_len)
        return tuple(found)
    except (ValueError, OSError):
        raise
    except Exception as error:
        where = [raised_by(error, type(one)) for one in own]
        key = "source" if isinstance(own[-1], Source) else "name"
        raise ValueError(f"`{key}`: {_path_of(own[-1])} raised an error{where[-1]}") from error


def _refuse_wrong_ids(source: Source, split: Split, seq_len: int) -> None:
    try:
        found = source.batch(split, 0, 0, ROWS, seq_len)
        inputs, targets = found
    except (ValueError, OSError):
        raise
    except Exception as error:
        where = raised_by(error, type(source))
        raise ValueError(f"`source`: {_path_of(source)} raised an error{where}") from error
    for name, ids in (("inputs", inputs), ("targets", targets)):
        is_ids = isinstance(ids, Tensor) and ids.dtype == torch.long and ids.shape == (ROWS, seq_len)
        if not is_ids:
            shown = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(
                f"{_named(source)} must give {name} of long [{ROWS}, {seq_len}], but gives {shown}"
            )
        scored = ids if name == "inputs" else ids[ids != IGNORE]
        if len(scored) and not 0 <= int(scored.min()) <= int(scored.max()) < source.num_tokens:
            raise ValueError(
                f"{_named(source)} must give {name} from 0 to `num_tokens` - 1 = {source.num_tokens - 1}, "
                f"but gives {int(scored.min())} to {int(scored.max())}"
            )

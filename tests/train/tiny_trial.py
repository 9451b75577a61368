"""A trial small enough to train hundreds of times, with every feature that resuming must restore."""

import json
from pathlib import Path
from typing import Any

from flagformer.lab.train.config import Trial

FLAGS = {"dim": 16, "depth": 1, "heads": 2, "attn_dropout": 0.1, "ff_dropout": 0.2}


def tiny(**changes: Any) -> Trial:
    """Eight steps, a checkpoint after every third, dropout, micro-batches, validation in between."""
    train = {
        "steps": 8,
        "batch_size": 4,
        "accumulate": 2,
        "warmup": 2,
        "checkpoint_every": 3,
        "eval_every": 2,
    }
    content: dict[str, Any] = {
        "flags": {**FLAGS, **changes.pop("flags", {})},
        "data": {"source": "copy", "symbols": 8, "seq_len": 12},
        "train": {**train, "device": "cpu", **changes.pop("train", {})},
        "evaluate": {"seq_lens": [12, 24], "batches": 2},
        "seed": 5,
        **changes,
    }
    return Trial.model_validate(content)


def losses(directory: Path) -> list[tuple[int, float, float | None]]:
    """Step, loss and validation loss of every line; duplicated or missing steps differ."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("validation_loss")) for line in lines]


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """The parts of a result that must not depend on time or interruptions."""
    return {key: value for key, value in result.items() if key not in ("cost", "notes")}

"""The coordinate check of muP: how activations change with the width after a few steps of training
(arXiv:2203.03466, appendix D.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flagformer.lab.train.config import Trial
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.mup.settings import Mup
from flagformer.lab.train.optimizers.groups import make_optimizer

KINDS = {"embedding": "embedding", "a": "attention output", "f": "feedforward output", "logits": "logits"}
MARGIN = 0.25  # exponents of width are multiples of a half: nearer to 0 than to the next one
GROWS = ("heads", "attn_dim_head")


@dataclass(frozen=True)
class Coordinates:
    """The changes of activations at several widths.

    Attributes:
        widths: the model widths D.
        changes: by kind of activation, [seeds, widths]: root mean square over elements, rows and layers of
            the activation after training minus that before, for the same inputs.
    """

    widths: tuple[int, ...]
    changes: dict[str, np.ndarray]

    def slopes(self, kind: str) -> np.ndarray:
        """The slope of log(change) against log(width), by least squares, for each seed."""
        x = np.log2(self.widths) - np.log2(self.widths).mean()
        logs = np.log2(self.changes[kind])
        slopes: np.ndarray = (logs - logs.mean(1, keepdims=True)) @ x / (x @ x)
        return slopes


def at_width(trial: Trial, width: int, base: int, grow: str, mup: bool) -> Trial:
    """The trial at another width, with or without muP relative to the width `base`.

    Args:
        grow: the size of the heads that grows with the width: their number (`heads`, with `attn_kv_heads`) or
            `attn_dim_head`. `ff_inner_dim` grows too.

    Raises:
        ValueError: a size would not be a whole number.
    """
    sizes, of_base = (_sizes(trial.flags, one, grow) for one in (width, base))
    train = trial.train.model_copy(update={"mup": Mup(base=of_base) if mup else None})
    return trial.model_copy(update={"flags": {**trial.flags, **sizes}, "train": train})


def _sizes(flags: dict[str, Any], width: int, grow: str) -> dict[str, int]:
    """The sizes of the flags that grow, at a width."""
    given = {"heads": 8, "attn_dim_head": 64, **flags}
    names = ["dim", grow, *(["attn_kv_heads"] if grow == "heads" else []), "ff_inner_dim"]
    found = {}
    for name in (one for one in names if given.get(one) is not None):
        size, rest = divmod(given[name] * width, given["dim"])
        if rest or not size:
            raise ValueError(
                f"`widths` must be multiples at which `{name}` = {given[name]} of `dim` = {given['dim']} "
                f"stays a whole number, but holds {width}"
            )
        found[name] = size
    return found


def coordinates(
    trial: Trial,
    widths: Sequence[int],
    *,
    mup: bool,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 4,
    grow: str = "heads",
    report: Callable[[int, int], None] | None = None,
) -> Coordinates:
    """Train at each width for `steps` steps with the constant rate `train.lr`, and measure activations.

    Args:
        trial: the model at any width, the data and the training.
        widths: at least two widths D; the first is that of the base model.
        mup: whether to train with muP.
        seeds: of weights and data, at least two.
        grow: see `at_width`.
        report: called with width and seed before each training.

    Raises:
        ValueError: fewer than two widths or seeds, a width that does not fit, or a model without rules.
    """
    for name, values in (("widths", widths), ("seeds", seeds)):
        if len(set(values)) < 2 or len(set(values)) < len(values):
            raise ValueError(f"`{name}` must be at least two different numbers, but is {list(values)}")
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, but is {steps}")
    if grow not in GROWS:
        raise ValueError(f"`grow` must be {' or '.join(GROWS)}, but is {grow!r}")
    if trial.start is not None:
        raise ValueError("`from` must be left out for a coordinate check, which needs new models")
    sized = [at_width(trial, width, widths[0], grow, mup) for width in widths]
    changes: dict[str, list[list[float]]] = {}
    for seed in seeds:
        rows = []
        for width, one in zip(widths, sized, strict=True):
            if report is not None:
                report(width, seed)
            rows.append(_changes(one.model_copy(update={"seed": seed}), steps))
        for kind in rows[0]:
            changes.setdefault(kind, []).append([row[kind] for row in rows])
    return Coordinates(tuple(widths), {kind: np.array(found) for kind, found in changes.items()})


def _changes(trial: Trial, steps: int) -> dict[str, float]:
    """Root mean square changes of one model, by kind of activation."""
    config, source, objective = trial.train, trial.source, trial.trained_by
    torch.manual_seed(trial.weights_seed)
    model = trial.build()
    optimizer = make_optimizer(model, config, trial.mup_rules(model))
    probe = objective.batch(source, "validation", 0, 0, config.batch_size, source.seq_len)
    before = _activations(model, trial, probe)
    model.train()
    for step in range(steps):
        batch = objective.batch(source, "train", step, trial.seed, config.batch_size, source.seq_len)
        update = train_step(model, optimizer, batch, config.lr, config, objective=objective)
        if not update.finite:
            raise ValueError(f"the loss at width {trial.flags['dim']} is not finite; lower `train.lr`")
    after = _activations(model, trial, probe)
    squares: dict[str, list[float]] = {}
    for name, kind in ((name, name.split(" ")[0]) for name in before):
        squares.setdefault(KINDS[kind], []).append(float((after[name] - before[name]).square().mean()))
    return {kind: float(np.sqrt(np.mean(found))) for kind, found in squares.items()}


@torch.no_grad()
def _activations(model: Any, trial: Trial, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The activations of a forward without dropout, in fp64, by kind and layer."""
    found: dict[str, Tensor] = {}
    with _hooked(model, found):
        logits, _ = trial.trained_by.ask(model.eval(), batch[:-1], trial.train.segment, losses=False)
    found["logits"] = logits.double()
    return found


@contextmanager
def _hooked(model: Any, found: dict[str, Tensor]) -> Iterator[None]:
    """Inside, forwards store the embeddings and the output of each sublayer."""

    def store(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        found[name] = output.double()

    handles = [model.embedding.register_forward_hook(partial(store, "embedding"))]
    for index, sublayer in enumerate(model.attn_layers.sublayers):
        if sublayer.kind in KINDS:
            handles.append(sublayer.fn.register_forward_hook(partial(store, f"{sublayer.kind} {index}")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

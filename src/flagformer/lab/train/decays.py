"""The shapes in which a learning rate decays."""

from __future__ import annotations

import math
from collections.abc import Callable

from flagformer.lab.imports import imported

Shape = Callable[[float], float]  # share of the steps after the warmup -> share of the height
# After the warmup, from `lr` at 0 down to `lr * lr_end` at 1.
SHAPES: dict[str, Shape] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
DECAYS = {
    "cosine": "half a cosine from `lr` to `lr * lr_end`",
    "linear": "a line from `lr` to `lr * lr_end`",
    "constant": "`lr`",
    "wsd": "`lr`, and in the last `decay_share` of the steps `1 - sqrt(share)` down to `lr * lr_end` "
    "(arXiv:2405.18392, section 3)",
    "inverse_sqrt": "`lr * sqrt(warmup / step)` (arXiv:1706.03762, section 5.3)",
}


def decay_of(name: str) -> Shape | None:
    """The shape of a decay; None for those that need more than the share of the steps.

    Raises:
        ValueError: for an unknown name, and a path that is no function.
    """
    if name in DECAYS:
        return SHAPES.get(name)
    if ":" not in name:
        raise ValueError(f"`decay` must be one of {', '.join(DECAYS)} or an import path, but is {name!r}")
    found: Shape = imported(name, "decay")
    return found


def falling_steps(steps: int, share: float) -> int:
    """The number of last steps in which the rate falls, of `wsd`."""
    return max(1, round(steps * share))

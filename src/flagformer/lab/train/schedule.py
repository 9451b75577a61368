"""The learning rate of every step."""

from __future__ import annotations

import math

from flagformer.lab.imports import raised_by
from flagformer.lab.train.decays import SHAPES, decay_of, falling_steps
from flagformer.lab.train.settings import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of update `step`, counted from 1: linear to `lr` over `warmup` steps, then by `decay`."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    if not config.optimizer.decays_rate:
        return config.lr
    if config.decay == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, config.warmup) / step)
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    height = _height(step, done, config)
    return config.lr * (config.lr_end + (1 - config.lr_end) * height)


def _height(step: int, done: float, config: TrainConfig) -> float:
    if config.decay == "wsd":
        falling = falling_steps(config.steps, config.decay_share)
        return 1 - math.sqrt(max(0, step - (config.steps - falling)) / falling)
    shape = decay_of(config.decay)
    assert shape is not None
    if config.decay in SHAPES:
        return shape(done)
    try:
        height = float(shape(done))
    except Exception as error:  # the function's own code may raise anything
        raise ValueError(f"`decay` is {config.decay}{raised_by(error, shape)}") from error
    if not 0 <= height < math.inf:
        raise ValueError(f"`decay` is {config.decay}, which must return a share >= 0, but returns {height}")
    return height

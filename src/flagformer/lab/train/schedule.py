"""The learning rate of every step."""

import math

from flagformer.lab.train.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of update `step`, counted from 1: linear to `lr` over `warmup` steps, then down to `lr *
    lr_end` at the last step.
    """
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    height = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "constant": 1.0,
    }[config.decay]
    return config.lr * (config.lr_end + (1 - config.lr_end) * height)

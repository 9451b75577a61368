"""The training device."""

from __future__ import annotations

import torch

from flagformer.lab.train.settings import TrainConfig


def device_of(config: TrainConfig) -> torch.device:
    """The device of `config.device`; with torchrun that of this rank.

    Raises:
        ValueError: the device does not exist.
    """
    present = torch.cuda.is_available()
    if config.device == "cuda" and not present:
        raise ValueError("`train.device` must be auto or cpu here, but is cuda: torch finds no CUDA device")
    if present and config.device != "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

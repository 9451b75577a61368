"""Modules that one part of a model owns and another one reads."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def borrow(reader: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Makes modules attributes of `reader`, by name, without registering them a second time.

    `torch.func.functional_call` swaps the tensors of every name, but restores those of one name only: a
    module with two names would keep what it was called with, such as the batched tensors of a `vmap`.
    """
    reader.__dict__.update(modules)

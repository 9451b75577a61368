"""References to modules that another part of the model owns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def borrow(reader: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Make modules attributes of `reader`, by name, without registering them a second time.

    `torch.func.functional_call` replaces the tensors of every name but restores those of one name only: a
    module with two names would keep the tensors of the call, such as the batched tensors of a `vmap`.
    """
    reader.__dict__.update(modules)

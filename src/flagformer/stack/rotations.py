"""The rotations of a stack: one module for all layers with equal flags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flagformer.flags import ErrorCollector, Instance, Spec, SublayerSpec
from flagformer.flow import Dims, Layout
from flagformer.position import CosSin, Rotation


class Rotations(nn.ModuleList):
    """The distinct rotations of self-attention, each of which makes its cosines and sines once a forward.

    Args:
        modules: the sublayers of the stack.
        errors: collects the errors of rotations, which are None then.
    """

    def __init__(self, modules: Sequence[SublayerSpec], dims: Dims, errors: ErrorCollector) -> None:
        super().__init__()
        self._specs: list[Spec | Instance] = []
        for spec in (module.slots["rotation"][0] for module in modules if module.kind == "a"):
            if spec not in self._specs:
                self._specs.append(spec)
                self.append(errors.collect(lambda spec=spec: spec.build(dims)))  # type: ignore[misc]

    def of(self, module: SublayerSpec) -> tuple[Rotation, int]:
        """The rotation of a self-attention sublayer, and its index."""
        index = self._specs.index(module.slots["rotation"][0])
        return self[index], index  # type: ignore[return-value]

    def refuse_memory(self) -> None:
        """Raise ValueError if angles depend on the length of a text, which a memory does not hold."""
        if any(getattr(rotation, "by_length", None) for rotation in self):
            text = "`mems` cannot be given to layers whose `rotary_scaling` chooses its factors by the length"
            raise ValueError(f"{text} of a text: fix the choice by `seq_len` in `rotary_scaling`")

    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> tuple[CosSin | None, ...]:
        """The cosines and sines of each rotation."""
        return tuple(rotation.cos_sin(layout, dtype) for rotation in self)  # type: ignore[operator]

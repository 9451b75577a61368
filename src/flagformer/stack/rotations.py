"""The rotations of a stack: one module for all layers with equal flags."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flagformer.flags import ErrorCollector, Instance, Spec, SublayerSpec
from flagformer.flow import Dims, Layout
from flagformer.position import CosSin, Rotation
from flagformer.position.none import NoRotation


class Rotations(nn.ModuleList):
    """The distinct rotations of self-attention, each of which makes its cosines and sines once a forward.

    Args:
        modules: the sublayers of the stack.
        errors: collects the errors of rotations; the sublayers are then built without, for their own errors.
    """

    def __init__(self, modules: Sequence[SublayerSpec], dims: Dims, errors: ErrorCollector) -> None:
        super().__init__()
        self._specs: list[Spec | Instance] = []
        for spec in (module.slots["rotation"][0] for module in modules if module.kind == "a"):
            if spec not in self._specs:
                self._specs.append(spec)
                built = errors.collect(lambda spec=spec: spec.build(dims))  # type: ignore[misc]
                self.append(NoRotation(dims) if built is None else built)

    def of(self, module: SublayerSpec) -> tuple[Rotation, int]:
        """The rotation of a self-attention sublayer, and its index."""
        index = self._specs.index(module.slots["rotation"][0])
        return self[index], index  # type: ignore[return-value]

    def cos_sin(self, layout: Layout, dtype: torch.dtype) -> tuple[CosSin | None, ...]:
        """The cosines and sines of each rotation."""
        return tuple(rotation.cos_sin(layout, dtype) for rotation in self)  # type: ignore[operator]

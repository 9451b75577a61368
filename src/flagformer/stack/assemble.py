"""Specs -> modules: one sublayer after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from flagformer.attention.attention import build_attention
from flagformer.branch.scale import Half
from flagformer.flags import Module, Resolved
from flagformer.flow import Dims
from flagformer.norm import Norm
from flagformer.ops.identity import identity
from flagformer.position import Rotation
from flagformer.residual import Residual
from flagformer.stack.placement import Placement
from flagformer.stack.sublayer import Step, Sublayer

NormMaker = Callable[[], Norm]


def build_sublayers(
    resolved: Resolved,
    dims: Dims,
    norm: NormMaker,
    placement: Placement,
    rotation: Rotation,
    residual: Residual,
) -> Sequence[Sublayer]:
    """The modules of the plan, in the plan's order of modules."""

    def place(filled: bool) -> Step:
        return norm() if filled else identity

    return nn.ModuleList(  # type: ignore[return-value]
        Sublayer(
            module.kind,
            _function(module, dims, rotation),
            place(placement.before),
            place(placement.branch),
            place(placement.after),
            _branch(module, dims, resolved.plan.halves),
            residual,
        )
        for module in resolved.modules
    )


def _function(module: Module, dims: Dims, rotation: Rotation) -> nn.Module:
    if module.kind != "f":
        return build_attention(module.slots, dims, rotation, cross=module.kind == "c")
    activation = module.slots["activation"][0].build()
    return module.slots["feedforward"][0].build(dims, activation)


def _branch(module: Module, dims: Dims, halves: bool) -> Step:
    parts: list[nn.Module] = [Half()] if halves and module.kind == "f" else []
    parts += [filler.build(dims) for filler in module.slots["branch"]]
    if not parts:
        return identity
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

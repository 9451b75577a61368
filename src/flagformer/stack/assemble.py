"""Builds the sublayers of a stack from their specs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from flagformer.attention.attention import build_attention
from flagformer.branch.scale import HalfStep
from flagformer.flags import ErrorCollector, Finding, FlagError, Place, Resolved, SublayerSpec, with_prefix
from flagformer.flags.needs import declared
from flagformer.flow import Dims
from flagformer.ops.identity import as_module, identity
from flagformer.position import PositionBias
from flagformer.position.none import NoRotation
from flagformer.residual import Residual
from flagformer.stack.parallel_groups import ParallelGroups
from flagformer.stack.placement import Placement
from flagformer.stack.places import placed_modules, places_of
from flagformer.stack.rotations import Rotations
from flagformer.stack.sublayer import (
    BranchesWithSide,
    SharedNorm,
    Sublayer,
    TensorFn,
    reads_side,
    sublayer_class,
)

NormMaker = Callable[[Place], TensorFn]


def build_sublayers(
    resolved: Resolved,
    dims: Dims,
    norm: NormMaker,
    placement: Placement,
    rotations: Rotations,
    residual: Residual,
    errors: ErrorCollector,
    relative: PositionBias | None,
) -> Sequence[Sublayer]:
    """Build the sublayer modules of the plan; raise all errors collected here and before."""

    places, groups = places_of(resolved.plan), ParallelGroups.of(resolved.plan)
    modules = placed_modules(resolved)
    functions = [
        errors.collect(partial(_function, module, dims, rotations, resolved.flags, relative))
        for module in modules
    ]
    errors.findings += _unused_core(resolved, functions) + _unused_activation(resolved)
    errors.raise_all()

    def sublayer(index: int, module: SublayerSpec, function: nn.Module | None, owner: Any) -> Sublayer:
        has_in_norm = placement.before and owner is None and (placement.first or index > 0)
        has_out_norm = placement.after and groups.is_last[index]
        input_mixer = module.slots["input_mixer"][0].build(dims)
        in_norm, branch_norm, out_norm = (
            norm(places[index]) if has_norm else identity
            for has_norm in (has_in_norm, placement.branch, has_out_norm)
        )
        branch = _branch(module, dims, resolved.plan.half_step)
        parts = (
            index, module.kind, input_mixer, function, in_norm, branch_norm, out_norm, branch, residual
        )  # fmt: skip
        if groups.shares_norm[index] and placement.before:
            return SharedNorm(*parts, owner=owner)
        return sublayer_class(input_mixer, in_norm, (branch_norm, out_norm, branch), residual)(*parts)

    built: list[Sublayer] = []
    for index, each in enumerate(zip(modules, functions)):
        first = groups.first[index]
        shares = groups.shares_norm[index] and first < index
        built.append(sublayer(index, *each, built[first] if shares else None))
    return nn.ModuleList(built)  # type: ignore[return-value]


def _function(
    module: SublayerSpec,
    dims: Dims,
    rotations: Rotations,
    flags: Mapping[str, Any],
    relative: PositionBias | None,
) -> nn.Module:
    if module.kind == "a":
        return build_attention(module.slots, dims, *rotations.of(module), relative)
    if module.kind == "c":
        try:
            return build_attention(module.slots, dims, NoRotation(dims))
        except FlagError as error:
            typed = {name.removeprefix("cross_") for name in flags if name.startswith("cross_")}
            raise FlagError(with_prefix(error.findings, "cross_", typed)) from None
    if module.kind == "m":
        mixer: nn.Module = module.slots["sequence_mixer"][0].build(dims)
        return mixer
    activation = module.slots["activation"][0].build()
    return module.slots["feedforward"][0].build(dims, activation)


def _unused_activation(resolved: Resolved) -> list[Finding]:
    """Return a finding for a selected activation that no feedforward uses."""
    forwards = [
        (m.slots["activation"][0], m.slots["feedforward"][0]) for m in resolved.modules if m.kind == "f"
    ]
    if any(getattr(feedforward.cls, "reads_activation", True) for _, feedforward in forwards):
        return []
    chosen = dict.fromkeys((declared("activation", a), declared("feedforward", f)) for a, f in forwards)
    return [
        Finding(
            item.select,
            f"`{item.say()}` and `{forward.say()}` cannot be combined, because this feedforward has no"
            f" activation; leave `{item.say()}` out",
        )
        for item, forward in chosen
        if item.select is not None
    ]


def _branch(module: SublayerSpec, dims: Dims, half_step: bool) -> TensorFn:
    parts: list[nn.Module] = [HalfStep()] if half_step and module.kind == "f" else []
    parts += [as_module(choice.build(dims)) for choice in module.slots["branch"]]
    if not parts:
        return identity
    if len(parts) == 1:
        return parts[0]
    return BranchesWithSide(*parts) if any(map(reads_side, parts)) else nn.Sequential(*parts)


def _unused_core(resolved: Resolved, functions: Sequence[nn.Module | None]) -> list[Finding]:
    """Return a finding for a selected core where all heads are local."""
    own = [(m.slots["core"][0], f) for m, f in zip(resolved.modules, functions) if m.kind == "a"]
    if any(function is None for _, function in own):
        return []
    used = {type(part) for _, function in own if function is not None for part in function.modules()}
    unused = [declared("core", choice) for choice, _ in own if choice.cls not in used]
    return [
        Finding(
            item.select,
            f"`{item.say()}` and `n_local_attn_heads` cannot be combined here, because all heads of all"
            " layers are local; reduce `n_local_attn_heads`, or leave one of the two out",
        )
        for item in dict.fromkeys(unused)
        if item.select is not None
    ]

"""Specs -> modules: one sublayer after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from flagformer.attention.attention import build_attention
from flagformer.branch.scale import HalfStep
from flagformer.flags import ErrorCollector, Finding, FlagError, Resolved, SublayerSpec, with_prefix
from flagformer.flags.conflicts import declared
from flagformer.flow import Dims
from flagformer.norm import Norm
from flagformer.ops.identity import as_module, identity
from flagformer.position import Rotation
from flagformer.residual import Residual
from flagformer.stack.placement import Placement
from flagformer.stack.sublayer import Step, Sublayer, sublayer_class

NormMaker = Callable[[], Norm]


def build_sublayers(
    resolved: Resolved,
    dims: Dims,
    norm: NormMaker,
    placement: Placement,
    rotation: Rotation,
    residual: Residual,
    gathered: ErrorCollector,
) -> Sequence[Sublayer]:
    """The modules of the plan, in the plan's order of modules; raises what was gathered, here and before."""

    def place(filled: bool) -> Step:
        return norm() if filled else identity

    functions = [
        gathered.collect(partial(_function, module, dims, rotation, resolved.flags))
        for module in resolved.modules
    ]
    gathered.findings += _idle_core(resolved, functions) + _idle_activation(resolved)
    gathered.raise_all()

    def sublayer(index: int, module: SublayerSpec, function: nn.Module | None) -> Sublayer:
        input_mixer = module.slots["input_mixer"][0].build(dims)
        before, behind, over = map(place, (placement.before, placement.branch, placement.after))
        branch = _branch(module, dims, resolved.plan.halves)
        form = sublayer_class(input_mixer, (behind, over, branch), residual)
        return form(index, module.kind, input_mixer, function, before, behind, over, branch, residual)

    built = [sublayer(index, *each) for index, each in enumerate(zip(resolved.modules, functions))]
    return nn.ModuleList(built)  # type: ignore[return-value]


def _function(module: SublayerSpec, dims: Dims, rotation: Rotation, flags: Mapping[str, Any]) -> nn.Module:
    if module.kind == "a":
        return build_attention(module.slots, dims, rotation, cross=False)
    if module.kind == "c":
        try:
            return build_attention(module.slots, dims, rotation, cross=True)
        except FlagError as error:
            typed = {name.removeprefix("cross_") for name in flags if name.startswith("cross_")}
            raise FlagError(with_prefix(error.findings, "cross_", typed)) from None
    activation = module.slots["activation"][0].build()
    return module.slots["feedforward"][0].build(dims, activation)


def _idle_activation(resolved: Resolved) -> list[Finding]:
    """An activation that was chosen where no feedforward has one."""
    forwards = [
        (m.slots["activation"][0], m.slots["feedforward"][0]) for m in resolved.modules if m.kind == "f"
    ]
    if any(getattr(filler.cls, "reads_activation", True) for _, filler in forwards):
        return []
    chosen = dict.fromkeys((declared("activation", a), declared("feedforward", f)) for a, f in forwards)
    return [
        Finding(
            item.select,
            f"`{item.say()}` and `{forward.say()}` cannot be combined, because no feedforward here has an"
            f" activation; leave `{item.say()}` out",
        )
        for item, forward in chosen
        if item.select is not None
    ]


def _branch(module: SublayerSpec, dims: Dims, halves: bool) -> Step:
    parts: list[nn.Module] = [HalfStep()] if halves and module.kind == "f" else []
    parts += [as_module(filler.build(dims)) for filler in module.slots["branch"]]
    if not parts:
        return identity
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _idle_core(resolved: Resolved, functions: Sequence[nn.Module | None]) -> list[Finding]:
    """A core that was chosen where all heads are local."""
    own = [(m.slots["core"][0], f) for m, f in zip(resolved.modules, functions) if m.kind == "a"]
    if any(function is None for _, function in own):
        return []
    served = {type(part) for _, function in own if function is not None for part in function.modules()}
    idle = [declared("core", filler) for filler, _ in own if filler.cls not in served]
    return [
        Finding(
            item.select,
            f"`{item.say()}` and `n_local_attn_heads` cannot be combined here, because all heads of every"
            " layer are local; leave some over, or leave one of both out",
        )
        for item in dict.fromkeys(idle)
        if item.select is not None
    ]

"""A stack in words: which filler stands in each slot, and why its kernel was chosen."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flagformer.flags import SublayerSpec
    from flagformer.stack.layers import AttentionLayers

NAMES = {"a": "self-attention", "c": "cross-attention", "f": "feedforward"}


def explain_stack(layers: AttentionLayers) -> str:
    """A few lines: the stack's slots, the order of sublayers, each kind of sublayer, the executor."""
    resolved = layers.resolved
    lines = [f"{type(layers).__name__}: {len(resolved.modules)} sublayers, {len(resolved.plan.order)} steps"]
    lines.append("  order: " + " ".join(resolved.modules[index].kind for index in resolved.plan.order))
    for slot in ("norm", "norm_position", "residual", "init", "context_dropout", "rotation", "position_bias"):
        lines += [f"  {slot}: {filler.describe()}" for filler in resolved.stack[slot]]
    described = [
        (f"{NAMES[module.kind]} ({_slots(module)})", str(index))
        for index, module in enumerate(resolved.modules)
    ]
    for text, same in groupby(sorted(described), key=lambda pair: pair[0]):
        numbers = sorted((number for _, number in same), key=int)
        lines.append(f"  {text}; sublayers {', '.join(numbers)}")
    lines += [f"  kernel: {reason}" for reason in _kernels(layers)]
    lines.append(f"  executor: {type(layers.executor).__name__}, keeps {layers.executor.saves}")
    caching = "yes" if layers.can_cache else "no, because tokens see later ones"
    return "\n".join([*lines, f"  step-by-step decoding: {caching}"])


def _slots(module: SublayerSpec) -> str:
    return ", ".join(filler.describe() for fillers in module.slots.values() for filler in fillers)


def _kernels(layers: AttentionLayers) -> list[str]:
    found: dict[str, None] = {}
    for sublayer in layers.sublayers:
        if sublayer.kind != "f":
            core = sublayer.fn.core
            kernel = getattr(core, "kernel", core)  # a core of one's own may do its arithmetic itself
            reason = getattr(kernel, "reason", "given")
            found[f"{type(kernel).__name__} in {NAMES[sublayer.kind]}: {reason}"] = None
    return list(found)

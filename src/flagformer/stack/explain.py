"""A description of a stack: the component of each slot, and why each kernel was chosen."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from flagformer.flags import Resolved, SublayerSpec
from flagformer.stack.parallel_groups import ParallelGroups

NAMES = {"a": "self-attention", "c": "cross-attention", "f": "feedforward", "m": "mixer"}


def explain_stack(layers: Any) -> str:
    """Return lines with the slots of the stack, the order of sublayers, each kind of them, the executor."""
    resolved = layers.resolved
    lines = [f"{type(layers).__name__}: {len(resolved.modules)} sublayers, {len(resolved.plan.order)} steps"]
    lines.append(f"  order: {_order(resolved)}")
    for slot in ("norm", "norm_position", "residual", "init", "position_bias"):
        lines += [f"  {slot}: {choice.describe()}" for choice in resolved.stack[slot]]
    described = [
        (f"{NAMES[module.kind]} ({_slots(module)})", str(index))
        for index, module in enumerate(resolved.modules)
    ]
    for text, same in groupby(sorted(described), key=lambda pair: pair[0]):
        numbers = sorted((number for _, number in same), key=int)
        lines.append(f"  {text}; sublayers {', '.join(numbers)}")
    lines += [f"  kernel: {reason}" for reason in _kernels(layers)]
    lines.append(f"  executor: {type(layers.executor).__name__}, keeps {layers.executor.saves}")
    caching = "yes" if layers.can_cache else "no, because tokens attend to later ones"
    return "\n".join([*lines, f"  step-by-step decoding: {caching}"])


def _order(resolved: Resolved) -> str:
    """The kinds of sublayers in the order of execution; "+" joins those that run in parallel: `a+f a+f`."""
    is_last = ParallelGroups.of(resolved.plan).is_last
    kinds = [(resolved.modules[index].kind, is_last[index]) for index in resolved.plan.order]
    return "".join(kind + (" " if last else "+") for kind, last in kinds).rstrip()


def _slots(module: SublayerSpec) -> str:
    return ", ".join(choice.describe() for choices in module.slots.values() for choice in choices)


def _kernels(layers: Any) -> list[str]:
    found: dict[str, None] = {}
    for sublayer in layers.sublayers:
        if sublayer.kind in ("a", "c"):
            core = sublayer.fn.core
            kernel = getattr(core, "kernel", core)  # a user's core may have no kernel
            reason = getattr(kernel, "reason", "given")
            found[f"{type(kernel).__name__} in {NAMES[sublayer.kind]}: {reason}"] = None
        elif sublayer.kind == "m" and sublayer.fn.kernel():
            found[f"{type(sublayer.fn).__name__} in {NAMES[sublayer.kind]}: {sublayer.fn.kernel()}"] = None
    return list(found)

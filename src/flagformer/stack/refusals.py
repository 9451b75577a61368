"""What only shows when all sublayers of a stack are built: carries that have nowhere to go, idle contexts."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from flagformer.flags import Finding, FlagError, Instance, Resolved
from flagformer.flow import Dims

# Flags that say which sublayers there are.
ORDERS = ("custom_layers", "sandwich_coef", "par_ratio")
# kind -> the flag that hands its scores on, and the kind in words
CARRIES = {"a": ("residual_attn", "self-attention"), "c": ("cross_residual_attn", "cross-attention")}

# kind -> the flag that says whom centroids of routing attention pick
SELECTIONS = {"a": "routing_selection", "c": "context_selection"}


def refuse_idle_context(dims: Dims, has_cross: bool) -> None:
    if dims.dim_context is not None and not has_cross:
        text = "`cross_attn_dim_context` has no effect here, because this model has no cross-attention"
        raise FlagError([Finding("cross_attn_dim_context", text + "; set `cross_attend=True` too")])


def refuse_shared(resolved: Resolved, layers: nn.Module) -> None:
    """A module with parameters or buffers that fills several places, which would share them."""
    fillers = [("norm", filler) for filler in resolved.stack["norm"]]
    fillers += [
        (slot, one) for module in resolved.modules for slot, many in module.slots.items() for one in many
    ]
    given = {
        id(filler.module): slot
        for slot, filler in fillers
        if isinstance(filler, Instance)
        and isinstance(filler.module, nn.Module)
        and filler.module.state_dict()
    }
    children = (child for module in layers.modules() for child in module._modules.values()) if given else ()
    counts = Counter(id(child) for child in children if id(child) in given)
    findings = [
        Finding(
            slot,
            f"`{slot}` was given one module for {counts[key]} places, which would share its parameters or"
            " buffers; give the class or a Spec, so that each place gets a module of its own",
        )
        for key, slot in given.items()
        if counts[key] > 1
    ]
    if findings:
        raise FlagError(dict.fromkeys(findings))


def refuse_carry(steps: Sequence[Any], flags: Mapping[str, Any]) -> None:
    """Scores handed on to nobody, or to layers of other keys; `steps`: the sublayers as they run."""
    findings = []
    for kind, (flag, words) in CARRIES.items():
        carrying = [
            step.fn for step in steps if step.kind == kind and getattr(step.fn.core, "carries", False)
        ]
        if len(carrying) == 1:
            text = f"`{flag}` has no effect here, because scores pass from one {words} to the next, and"
            findings.append(Finding(flag, f"{text} {_under(flags)}only one carries them; leave it out"))
        for other, counts in (
            ("attn_num_mem_kv", {fn.num_prefix_kv for fn in carrying}),
            ("attn_max_attend_past", {fn.window for fn in carrying}),
        ):
            if len(counts) > 1:
                text = f"`{flag}` and `{other}` cannot be combined here, because layers with different"
                findings.append(Finding(flag, f"{text} numbers of keys cannot add up their scores"))
    if findings:
        raise FlagError(findings)


def refuse_leak(steps: Sequence[Any], flags: Mapping[str, Any], causal: bool) -> bool:
    """Whether attention lets later tokens decide whom an earlier one meets, and the user knows it."""
    leaking = dict.fromkeys(
        SELECTIONS[step.kind]
        for step in steps
        if step.kind in SELECTIONS and getattr(step.fn.core, "is_acausal", False)
    )
    if not causal or not leaking:
        return False
    why = "each centroid picks among all tokens of a row, so that later ones push earlier ones out"
    unknown = [name for name in leaking if "topk" in _values(flags[name])]
    if unknown:
        raise FlagError(
            Finding(
                name,
                f"`{name}='topk'` and a causal model cannot be combined, because it shows the future: {why};"
                f" leave it out, or say `{name}='leaky'` to have it all the same",
            )
            for name in unknown
        )
    for name in leaking:
        warnings.warn(f"`{name}='leaky'` shows the future: {why}", stacklevel=2)
    return True


def _values(flag: Any) -> tuple[Any, ...]:
    """One value, or one for each layer."""
    return flag if isinstance(flag, tuple) else (flag,)


def _under(flags: Mapping[str, Any]) -> str:
    """The flag that ordered the sublayers, in words; nothing where none did."""
    order = next((name for name in ORDERS if flags.get(name)), "")
    return f"under `{order}` " if order else ""


def fixed_flags(flags: Any, owner: str, **fixed: bool) -> Any:
    """`flags` with those that the named stack `owner` sets; refused where they are given too."""
    findings = [
        Finding(name, f"`{name}` is fixed by {owner} as {value}; leave it out, or use AttentionLayers")
        for name, value in fixed.items()
        if name in flags
    ]
    if findings:
        raise FlagError(findings)
    return {**flags, **fixed}

"""Checks of a whole stack once its sublayers are built: residual scores, contexts, shared modules."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from flagformer.flags import Finding, FlagError, Instance, Resolved, SublayerSpec
from flagformer.flags.needs import declared

KINDS = {"a": "self-attention", "c": "cross-attention"}
OF_CONTEXT = ("cross_attn_dim_context", "cross_attn_tokens_dropout")
# Flags that order the sublayers.
ORDERS = ("custom_layers", "sandwich_coef", "par_ratio", "mixer")


def refuse_idle_context(flags: Mapping[str, Any], has_cross: bool) -> None:
    """Raise FlagError for settings of the context without cross-attention."""
    idle = [name for name in OF_CONTEXT if flags.get(name) and not has_cross]
    order = " (`custom_layers`)" if flags.get("custom_layers") else ""
    text = f"has no effect here, because this model has no cross-attention{order}"
    fix = "leave it out" if order else "set `cross_attend=True`, or leave it out"
    if idle:
        raise FlagError(Finding(name, f"`{name}` {text}; {fix}") for name in idle)


def components_of(resolved: Resolved) -> Iterator[tuple[str, Iterable[Any]]]:
    """Yield each slot that may be filled several times in a stack, with its components."""
    yield "norm", resolved.stack["norm"]
    for module in resolved.modules:
        yield from module.slots.items()


def refuse_shared(
    filled: Iterable[tuple[str, Iterable[Any]]], whole: nn.Module, sharing: str = "sublayers"
) -> None:
    """Raise FlagError for a module instance with parameters or buffers that several slots would share.

    Args:
        filled: slots and their components.
        whole: the stack or the model that contains them.
        sharing: what would share the module, for the message.
    """
    given = {
        id(choice.module): slot
        for slot, choices in filled
        for choice in choices
        if isinstance(choice, Instance)
        and isinstance(choice.module, nn.Module)
        and choice.module.state_dict()
    }
    children = (child for module in whole.modules() for child in module._modules.values()) if given else ()
    counts = Counter(id(child) for child in children if id(child) in given)
    findings = [
        Finding(
            slot,
            f"`{slot}` is one module that {counts[key]} {sharing} would share, with its parameters and"
            " buffers; pass the class or a Spec, so that each of them gets a module of its own",
        )
        for key, slot in given.items()
        if counts[key] > 1
    ]
    if findings:
        raise FlagError(dict.fromkeys(findings))


def refuse_carry(steps: Sequence[Any], resolved: Resolved) -> None:
    """Raise FlagError for residual attention in one layer only, or between layers with different keys.

    Args:
        steps: the sublayers in the order in which they run.
    """
    findings = []
    for kind in KINDS:
        carrying = [step for step in steps if step.kind == kind and getattr(step.fn.core, "carries", False)]
        modules = [resolved.modules[step.index] for step in carrying]
        flag = next(iter(_flags("core", modules)), "core")
        if len(carrying) == 1:
            text = f"`{flag}` has no effect here, because scores pass from one {KINDS[kind]} to the next, and"
            order = _with_order(resolved.flags)
            findings.append(Finding(flag, f"{text} {order}only one layer has it; leave it out"))
        for slot, count in (("prefix_kv", "num_prefix_kv"), ("window", "window")):
            if len({getattr(step.fn, count) for step in carrying}) > 1:
                names = " and ".join(f"`{name}`" for name in (flag, *_flags(slot, modules)))
                text = f"{names} cannot be combined here, because the scores of layers with different numbers"
                findings.append(Finding(flag, f"{text} of keys cannot be added"))
    if findings:
        raise FlagError(findings)


def refuse_leak(steps: Sequence[Any], flags: Mapping[str, Any], causal: bool) -> bool:
    """Return whether later tokens influence the keys of earlier ones; raise FlagError unless intended."""
    cores = [step.fn.core for step in steps if step.kind in KINDS]
    leaking = dict.fromkeys(
        getattr(core, "acausal_flag", "core") for core in cores if getattr(core, "is_acausal", False)
    )
    if not causal or not leaking:
        return False
    why = "each centroid selects tokens of the whole row, so that later tokens displace earlier ones"
    unintended = [name for name in leaking if "topk" in _values(flags[name])]
    if unintended:
        raise FlagError(
            Finding(
                name,
                f"`{name}='topk'` and a causal model cannot be combined, because it leaks future tokens: "
                f"{why}; leave it out, or use `{name}='leaky'` to allow the leak",
            )
            for name in unintended
        )
    for name in leaking:
        warnings.warn(f"`{name}` leaks future tokens: {why}", stacklevel=2)
    return True


def _flags(slot: str, modules: Iterable[SublayerSpec]) -> dict[str, None]:
    """The flags that select the components of a slot."""
    items = (declared(slot, choice) for module in modules for choice in module.slots[slot])
    return {item.select: None for item in items if item.select is not None}


def _values(flag: Any) -> tuple[Any, ...]:
    """Return the value of each layer."""
    return flag if isinstance(flag, tuple) else (flag,)


def _with_order(flags: Mapping[str, Any]) -> str:
    """Name the flag that orders the sublayers; empty if there is none."""
    order = next((name for name in ORDERS if flags.get(name)), "")
    return f"with `{order}` " if order else ""


def fixed_flags(flags: Any, owner: str, **fixed: bool) -> Any:
    """Return `flags` with the flags that the class `owner` fixes; raise FlagError if one of them was set."""
    findings = [
        Finding(name, f"`{name}` is fixed by {owner} as {value}; leave it out, or use AttentionLayers")
        for name, value in fixed.items()
        if name in flags
    ]
    if findings:
        raise FlagError(findings)
    return {**flags, **fixed}


def condition_width(layers: nn.Module) -> int | None:
    """Return the width of the condition that components read; None if none reads one."""
    widths: Iterator[Any] = (getattr(part, "condition_dim", None) for part in layers.modules())
    found = {int(width) for width in widths if width}
    if len(found) > 1:
        read = " and ".join(map(str, sorted(found)))
        text = f"`condition_dim` must be one width, but components read conditions of {read}"
        raise FlagError([Finding("condition_dim", text)])
    return next(iter(found), None)


def refuse_mixers(layers: Any) -> None:
    """Raise FlagError for mixers in layers that attend to later tokens."""
    if layers.has_mixers and not layers.causal:
        name = mixer_flag(layers.flags)
        text = f"`{name}` needs `causal=True`, because a mixer reads the tokens of a row in their order:"
        text = f"{text} {type(layers).__name__} is not causal; use Decoder, or leave `{name}` out"
        raise FlagError([Finding(name, text)])


def refuse_value_memory(layers: Any, name: str) -> None:
    """Raise FlagError for a flag `name` of memories of tokens, whose values are not modified."""
    choices = [choice for module in layers.resolved.modules for choice in module.slots.get("value_mod", ())]
    if choices:
        other = declared("value_mod", choices[0]).say()
        text = f"`{name}` and `{other}` cannot be combined, because a memory holds hidden states of earlier"
        raise FlagError([Finding(name, f"{text} tokens and not their ids; leave one of them out")])


def refuse_mixer_memory(layers: Any, name: str) -> None:
    """Raise FlagError for a flag `name` of memories that mixers do not read."""
    if layers.has_mixers:
        other = mixer_flag(layers.flags)
        text = f"`{name}` and `{other}` cannot be combined, because the state of a mixer starts with zeros in"
        raise FlagError([Finding(name, f"{text} each segment; leave one of them out")])


def refuse_mixer_arguments(layers: Any, arguments: Mapping[str, Any], fix: str = "leave it out") -> None:
    """Raise ValueError for arguments of a call that attention reads and mixers do not."""
    if not layers.has_mixers:
        return
    for name, value in arguments.items():
        if value is not None:
            other = mixer_flag(layers.flags)
            raise ValueError(
                f"`{name}` is for attention, but this model has mixers (`{other}`), whose state holds all "
                f"earlier tokens of the row: {fix}"
            )


def mixer_flag(flags: Mapping[str, Any]) -> str:
    """The flag that gives a stack its mixers."""
    return next((name for name in ("mixer", "sequence_mixer") if flags.get(name)), "custom_layers")

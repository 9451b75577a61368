"""Put flags into a model that exists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flagformer.flags import Finding, FlagError
from flagformer.interop.graft.effects import changed_settings, effects
from flagformer.interop.graft.fills import Fill, Misfit, fill_of
from flagformer.interop.graft.flags import together
from flagformer.interop.graft.neutral import as_dtype, compensate, initialise, silence, without_start
from flagformer.interop.graft.report import Graft
from flagformer.interop.hugging_face.family import tensors_of
from flagformer.interop.hugging_face.parts import Tensors
from flagformer.interop.hugging_face.stacks import KINDS, stacks_of
from flagformer.models.build import MODELS, build

Fills = Mapping[str, Fill | None]
SHOWN = 3  # settings in an error


def graft(model: Any, flags: Mapping[str, Any], what: str) -> Any:
    """A model of other flags with the tensors of `model`, whose own parameters it takes over.

    Parameters that it adds start without effect where their components allow it; random numbers are those of
    torch's default generator.

    Args:
        flags: those that change.
        what: the model in errors.

    Returns:
        the new model, with a `Graft` as its attribute `graft`.

    Raises:
        FlagError: for flags that exclude each other or those of the model, and for sizes that cannot change.
    """
    new = _built(model, flags, what)
    own, old = tensors_of(new), tensors_of(model)
    fills = _fills(old, own, flags, what)
    names = _moved(old, own, fills)
    factors = initialise(new, [name for name in own.state if name not in names])
    state = _state(model, new, old, own, (fills, names))
    new.load_state_dict(state, assign=True)
    compensate(new, factors)
    _silence_new(new, own, fills)
    changed = effects(old.settings, own.settings)
    changed |= {flag: f"`{flag}`: {why}" for flag, why in without_start(factors)}
    new.graft = _report(flags, fills, old, changed)
    if hasattr(model, "source"):
        new.source = model.source
    return new


def check_graft(model: Any, flags: Mapping[str, Any], what: str) -> Any:
    """The model of `graft` on torch's meta device, with the errors of `graft`; no tensor is read."""
    new = _built(model, flags, what)
    _fills(tensors_of(model), tensors_of(new), flags, what)
    return new


def _built(model: Any, flags: Mapping[str, Any], what: str) -> Any:
    """The model of other flags on torch's meta device; FlagError for flags that it cannot have."""
    if not isinstance(model, KINDS):
        known = ", ".join(cls.__name__ for cls in KINDS)
        text = f"{what} is a {type(model).__name__}, but flags can be grafted onto {known}"
        raise FlagError([Finding(next(iter(flags), "model"), text)])
    kind = model.flags["model"]
    if flags.get("model", kind) != kind and {flags["model"], kind} - MODELS.keys():
        text = f"`model` must stay {kind!r}, that of {what}, but is {flags['model']!r}"
        raise FlagError([Finding("model", text)])
    try:
        with torch.device("meta"):
            return build(together(model.flags, flags))
    except FlagError as error:
        text = f"of {what}, whose flags hold where no other value is set"
        raise FlagError(replace(f, message=f"{f.message} ({text})") for f in error.findings) from None


def _fills(old: Tensors, own: Tensors, flags: Mapping[str, Any], what: str) -> Fills:
    """The fill of each tensor of the new model; FlagError for sizes that cannot change."""
    fills: dict[str, Fill | None] = {}
    _refuse_fewer(old, own, what)
    for name in own.parts:
        try:
            fills[name] = fill_of(name, old, own)
        except Misfit as error:
            changes = changed_settings(old.settings, own.settings, flags)[:SHOWN]
            flag = next(
                (name for name in flags if any(f"`{name}`" in one for one in changes)), next(iter(flags))
            )
            text = f"{'; '.join(changes)}: this cannot be grafted onto {what}, because {error}"
            advice = "leave it out, or train a model of these flags without weights"
            raise FlagError([Finding(flag, f"{text}; {advice}")]) from None
    return fills


def _refuse_fewer(old: Tensors, own: Tensors, what: str) -> None:
    """FlagError for fewer layers: which of them to keep is no question of a flag."""
    for name in ("depth", "enc_depth", "dec_depth"):
        before, after = old.settings.get(name), own.settings.get(name)
        if isinstance(before, int) and isinstance(after, int) and after < before:
            text = f"`{name}` must be at least {before}, that of {what}, but is {after}"
            raise FlagError([Finding(name, f"{text}; a graft removes no layers")])


def _moved(old: Tensors, own: Tensors, fills: Fills) -> dict[str, str]:
    """Tensor of the new state dict -> tensor of the old one, for those that are taken over whole."""
    sources: dict[str, set[str | None]] = {}
    for name, part in own.parts.items():
        fill = fills[name]
        whole = fill is not None and not fill.how
        sources.setdefault(part.state, set()).add(old.parts[fill.source].state if whole and fill else None)
    return {
        name: source
        for name, (source, *others) in ((name, tuple(found)) for name, found in sources.items())
        if source is not None and not others and old.state[source].shape == own.state[name].shape
    }


def _state(
    model: Any, new: Any, old: Tensors, own: Tensors, plan: tuple[Fills, Mapping[str, str]]
) -> dict[str, Tensor]:
    """The state dict of the new model."""
    fills, names = plan
    dtype = _dtype(model)
    buffers = {name for name, _ in new.named_buffers()}
    state = {
        name: old.state[names[name]]
        if name in names
        else tensor
        if name in buffers
        else as_dtype(tensor, dtype)
        for name, tensor in new.state_dict().items()
    }
    views = Tensors(own.parts, state, own.settings)
    with torch.no_grad():
        for name, fill in fills.items():
            if fill is not None and own.parts[name].state not in names:
                fill.write(views(name))
            elif fill is None and _adds_bias(name, fills):
                views(name).zero_()
    return state


def _adds_bias(name: str, fills: Fills) -> bool:
    """Whether a tensor is the bias of a projection that the old model has without one."""
    owner, _, kind = name.rpartition(".")
    return kind == "bias" and fills.get(f"{owner}.weight") is not None


def _dtype(model: Any) -> torch.dtype:
    """The dtype of most parameters."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0]


def _silence_new(model: Any, own: Tensors, fills: Fills) -> None:
    """Let sublayers without an old projection start with the output zero."""
    for stack in stacks_of(model):
        start = f"{stack.state}attn_layers.sublayers."
        filled = {
            own.parts[name].state.removeprefix(start).partition(".")[0]
            for name, fill in fills.items()
            if fill is not None and own.parts[name].state.startswith(start)
            if own.parts[name].state.removeprefix(start).partition(".")[2].startswith("fn.")
        }
        for index, sublayer in enumerate(stack.model.attn_layers.sublayers):
            if str(index) not in filled:
                silence(sublayer)


def _report(flags: Mapping[str, Any], fills: Fills, old: Tensors, changed: Mapping[str, str]) -> Graft:
    used = {fill.source for fill in fills.values() if fill is not None}
    return Graft(
        flags=dict(flags),
        kept=tuple(name for name, fill in fills.items() if fill is not None and not fill.how),
        grown={name: fill.how for name, fill in fills.items() if fill is not None and fill.how},
        initialised=tuple(name for name, fill in fills.items() if fill is None),
        dropped=tuple(name for name in old.parts if name not in used),
        changed=dict(changed),
    )

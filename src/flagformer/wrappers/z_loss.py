"""The z-loss of attention as wrappers take it: by flag or by call, and never lost on its way."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flagformer.attention.z_loss import NAME
from flagformer.flags import Finding, FlagError
from flagformer.flags.conflicts import declared

USUAL = 1e-4  # what is taken where the loss is asked for and no weight was said, as in x-transformers
WAYS = (
    "ask for it by `return_attn_z_loss=True`, or train by AutoregressiveWrapper or XTransformer, which add it"
)


def refuse_no_attention(layers: Any, weight: float) -> None:
    """A z-loss that no sublayer makes, or not all attention."""
    if not weight:
        return
    cores = [sublayer.fn.core for sublayer in layers.sublayers if sublayer.kind != "f"]
    if cores and all(getattr(core, "has_z_loss", False) for core in cores):
        return
    why = "this model has no attention" if not cores else f"{_without(layers)} makes no z-loss"
    text = f"`attn_z_loss_weight` has no effect here, because {why}; leave it out"
    raise FlagError([Finding("attn_z_loss_weight", text)])


def _without(layers: Any) -> str:
    """What some attention is made by and makes no z-loss, as typed."""
    chosen = dict.fromkeys(
        declared(slot, module.slots[slot][0])
        for module in layers.resolved.modules
        if module.kind != "f"
        for slot in ("core", "local")
    )
    flags = [
        f"`{item.say()}`" for item in chosen if item.select and not getattr(item.cls, "has_z_loss", False)
    ]
    return " and ".join(flags) or "what fills `core`"


def losses_asked(model: Any, given: float | None, returned: bool, kept: bool) -> dict[str, float]:
    """The weight of the z-loss in a forward, by the loss's name; empty where there is none.

    Args:
        model: a TransformerWrapper.
        given: the call's `attn_z_loss_weight`.
        returned: the call's `return_attn_z_loss`.
        kept: whether what is returned has room for losses.
    """
    built = model.attn_z_loss_weight
    if given is not None:
        _check_weight(model, given, kept)
    elif built and not kept and model.training and torch.is_grad_enabled():
        raise ValueError(
            f"the z-loss of `attn_z_loss_weight` = {built:g} would be lost, as this form of the call returns "
            f"no losses: {WAYS} (`attn_z_loss_weight=0` in the call leaves it out)"
        )
    usual = USUAL if returned else 0.0
    weight = (built or usual) if given is None else float(given)
    if weight and not built:
        _check_layers(model.attn_layers)
    return {NAME: weight} if returned or (kept and weight) else {}


def _check_weight(model: Any, given: Any, kept: bool) -> None:
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number or not 0 <= given < float("inf"):
        raise ValueError(f"`attn_z_loss_weight` must be a number of at least 0, but is {given!r}")
    if given and not kept:
        raise ValueError(
            f"`attn_z_loss_weight` was given as {given:g}, but this form of the call returns no losses: "
            f"{WAYS}"
        )


def _check_layers(layers: Any) -> None:
    try:
        refuse_no_attention(layers, USUAL)
    except FlagError as error:
        raise ValueError(error.findings[0].message) from None


def adds_z_loss(net: nn.Module, asked: bool | None) -> bool:
    """Whether a wrapper adds the loss in training; None: when its net was built with a weight."""
    built = getattr(net, "attn_z_loss_weight", 0.0)
    if asked is False and built:
        raise ValueError(
            f"`add_attn_z_loss` must not be False around a `net` built with "
            f"`attn_z_loss_weight` = {built:g}, as that loss would be lost: leave out one of both"
        )
    return bool(built) if asked is None else asked

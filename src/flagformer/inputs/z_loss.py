"""The z-loss of attention in wrappers: its weight by flag or call, and errors where it would be lost."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import nn

from flagformer.attention.z_loss import NAME
from flagformer.flags import Finding, Flag, FlagError
from flagformer.flags.needs import declared

ZLossWeight = Annotated[
    float, Flag("attn_z_loss_weight", "weight of the z-loss of attention (2202.08906), 0 for none", ge=0)
]
DEFAULT_WEIGHT = 1e-4  # for a requested loss without a weight, as in x-transformers
WAYS = "use `return_attn_z_loss=True`, or train by AutoregressiveWrapper or XTransformer, which add it"


def refuse_no_attention(layers: Any, weight: float) -> None:
    """FlagError for a weight of the z-loss, if not all attention computes it."""
    if not weight:
        return
    cores = [sublayer.fn.core for sublayer in layers.sublayers if sublayer.kind in ("a", "c")]
    if cores and all(getattr(core, "has_z_loss", False) for core in cores):
        return
    why = "this model has no attention" if not cores else f"{_without(layers)} has no z-loss"
    text = f"`attn_z_loss_weight` has no effect here, because {why}; leave it out"
    raise FlagError([Finding("attn_z_loss_weight", text)])


def _without(layers: Any) -> str:
    """The flags, as typed, of attention without z-loss."""
    chosen = dict.fromkeys(
        declared(slot, module.slots[slot][0])
        for module in layers.resolved.modules
        if module.kind in ("a", "c")
        for slot in ("core", "local")
    )
    flags = [
        f"`{item.say()}`" for item in chosen if item.select and not getattr(item.cls, "has_z_loss", False)
    ]
    return " and ".join(flags) or "the component of `core`"


def requested_losses(model: Any, given: float | None, requested: bool, returned: bool) -> dict[str, float]:
    """The weight of the z-loss in a forward, by the loss's name; empty if it is not computed.

    Args:
        model: a TransformerWrapper.
        given: the call's `attn_z_loss_weight`.
        requested: the call's `return_attn_z_loss`.
        returned: whether the result of the call contains losses.
    """
    built = model.attn_z_loss_weight
    if given is not None:
        _check_weight(model, given, returned)
    elif built and not returned and model.training and torch.is_grad_enabled():
        raise ValueError(
            f"the z-loss of `attn_z_loss_weight` = {built:g} would be lost, as this form of the call returns "
            f"no losses: {WAYS} (`attn_z_loss_weight=0` in the call leaves it out)"
        )
    default = DEFAULT_WEIGHT if requested else 0.0
    weight = (built or default) if given is None else float(given)
    if weight and not built:
        _check_layers(model.attn_layers)
    return {NAME: weight} if requested or (returned and weight) else {}


def _check_weight(model: Any, given: Any, returned: bool) -> None:
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number or not 0 <= given < float("inf"):
        raise ValueError(f"`attn_z_loss_weight` must be a number of at least 0, but is {given!r}")
    if given and not returned:
        raise ValueError(
            f"`attn_z_loss_weight` was given as {given:g}, but this form of the call returns no losses: "
            f"{WAYS}"
        )


def _check_layers(layers: Any) -> None:
    try:
        refuse_no_attention(layers, DEFAULT_WEIGHT)
    except FlagError as error:
        raise ValueError(error.findings[0].message) from None


def adds_z_loss(net: nn.Module, requested: bool | None) -> bool:
    """Whether a wrapper adds the loss in training; `requested` None: if its net was built with a weight."""
    built = getattr(net, "attn_z_loss_weight", 0.0)
    if requested is False and built:
        raise ValueError(
            f"`add_attn_z_loss` must not be False around a `net` built with "
            f"`attn_z_loss_weight` = {built:g}, as that loss would be lost: leave out one of both"
        )
    return bool(built) if requested is None else requested

"""Build a TransformerWrapper from flat flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flagformer.flags import CATALOGUE, MODEL_SCOPES, Finding, FlagError, resolve
from flagformer.stack.layers import AttentionLayers, Decoder, Encoder, PrefixDecoder
from flagformer.wrappers.transformer import TransformerWrapper

MODELS: dict[str, type[AttentionLayers]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "prefix_decoder": PrefixDecoder,
}


def build_flat(kind: str, flags: Mapping[str, Any]) -> TransformerWrapper:
    """Build a model with one kind of layers, or raise one FlagError with every mistake."""
    if "causal" in flags:
        text = f"`causal` is fixed by `model: {kind}`; leave it out"
        raise FlagError([Finding("causal", text)])
    try:
        resolve({**flags, "causal": kind == "decoder"}, CATALOGUE, MODEL_SCOPES)
    except FlagError as error:
        raise FlagError(_by_model(finding, kind) for finding in error.findings) from None
    outer = set(CATALOGUE.names({"model"}))
    layers = MODELS[kind](**{name: value for name, value in flags.items() if name not in outer})
    return TransformerWrapper(
        attn_layers=layers, **{name: value for name, value in flags.items() if name in outer}
    )


def _by_model(finding: Finding, kind: str) -> Finding:
    """Replace `causal` in a message by the flag `model`, which the user typed."""
    text = finding.message.replace("`causal=True` (it is False)", f"`model=decoder` (it is `model={kind}`)")
    return replace(finding, message=text)

"""Flat flags -> a model: what study files, saved models and the command line use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flagformer.flags import CATALOGUE, LAYER_SCOPES, MODEL_SCOPES, Finding, FlagError, nearest, resolve
from flagformer.stack.layers import AttentionLayers, Decoder, Encoder, PrefixDecoder
from flagformer.wrappers.storage import load_model
from flagformer.wrappers.transformer import TransformerWrapper

MODELS: dict[str, type[AttentionLayers]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "prefix_decoder": PrefixDecoder,
}


def build(flags: Mapping[str, Any]) -> TransformerWrapper:
    """A model of flat flags.

    Args:
        flags: `model` ("decoder", "encoder" or "prefix_decoder", the first when left out), `num_tokens`,
            `max_seq_len`, `dim`, `depth` and any flag of `docs/flags.md`.

    Raises:
        FlagError: every mistake at once.
    """
    rest = dict(flags)
    kind = rest.pop("model", "decoder")
    if kind not in MODELS:
        known = ", ".join(f"'{name}'" for name in MODELS)
        text = f"`model` must be one of {known}, but is {kind!r}{nearest(str(kind), MODELS)}"
        raise FlagError([Finding("model", text)])
    if "causal" in rest:
        text = f"`causal` is fixed by `model: {kind}`; leave it out"
        raise FlagError([Finding("causal", text)])
    try:
        resolve({**rest, "causal": kind == "decoder"}, CATALOGUE, MODEL_SCOPES)
    except FlagError as error:
        raise FlagError(_by_model(finding, kind) for finding in error.findings) from None
    outer = set(CATALOGUE.names({"model"}))
    try:
        layers = MODELS[kind](**{name: value for name, value in rest.items() if name not in outer})
        return TransformerWrapper(
            attn_layers=layers, **{name: value for name, value in rest.items() if name in outer}
        )
    except (MemoryError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if not isinstance(error, MemoryError) and not any(word in reason for word in ("memory", "overflow")):
            raise
        text = f"there is no memory for a model of these sizes; make `dim` or another size smaller ({reason})"
        raise FlagError([Finding("dim", text)]) from None


def _by_model(finding: Finding, kind: str) -> Finding:
    """What `model` fixes, in the word that the user typed."""
    text = finding.message.replace("`causal=True` (it is False)", f"`model=decoder` (it is `model={kind}`)")
    return Finding(finding.flag, text)


def check(flags: Mapping[str, Any]) -> None:
    """Raises what `build` would raise, without memory for weights."""
    with torch.device("meta"):
        build(flags)


def load(directory: str | Path) -> nn.Module:
    """The model that `model.save(directory)` wrote. Nothing in the files is executed."""
    return load_model(Path(directory), build)


__all__ = ["LAYER_SCOPES", "MODELS", "build", "check", "load"]

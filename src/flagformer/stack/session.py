"""The caches of the sublayers of a stack."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flagformer.attention.cores import Core
from flagformer.flow import DecodeState
from flagformer.stack.sublayer import Sublayer


def cache_signature(steps: Sequence[Sublayer]) -> tuple[tuple[str | int, ...], ...]:
    """The kind and the sizes of the caches at each step; models that share a state have equal ones."""
    signature: list[tuple[str | int, ...]] = []
    for sublayer in steps:
        shape: tuple[str | int, ...] = (0, 0, 0)
        if sublayer.kind != "f":
            shape = sublayer.fn.cache_shape if sublayer.kind == "m" else sublayer.fn.source.cache_shape
        if sublayer.kind == "a" and sublayer.fn.score_biases is not None:
            shape = (*shape, "score_bias")
        signature.append((sublayer.kind, *shape))
    return tuple(signature)


def init_caches(
    state: DecodeState, steps: Sequence[Sublayer], dtype: torch.dtype, device: torch.device
) -> None:
    """Add the caches of every sublayer, at each of its steps, to a decode state."""
    for step, sublayer in enumerate(steps):
        cache = sublayer.input_mixer.init_cache(state, dtype, device)
        if cache is not None:
            state.input_mixer_caches[step] = cache
        if sublayer.kind == "m":
            state.mixer_caches[step] = sublayer.fn.init_cache(state, dtype, device)
        if sublayer.kind not in ("a", "c"):
            continue
        state.attention_caches[step] = sublayer.fn.source.init_cache(state, dtype, device)
        if sublayer.fn.score_biases is not None:
            state.score_bias_caches[step] = sublayer.fn.score_biases.init_cache(state, dtype, device)
        core = sublayer.fn.core
        core_cache = core.init_cache(state, device) if isinstance(core, Core) else None
        if core_cache is not None:
            state.core_caches[step] = core_cache

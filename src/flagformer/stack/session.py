"""The caches of the sublayers of a stack."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flagformer.attention.cores import Core
from flagformer.flow import DecodeState
from flagformer.stack.sublayer import Sublayer


def init_caches(
    state: DecodeState, steps: Sequence[Sublayer], dtype: torch.dtype, device: torch.device
) -> None:
    """Add the caches of every sublayer, at each of its steps, to a decode state."""
    for step, sublayer in enumerate(steps):
        cache = sublayer.input_mixer.init_cache(state, dtype, device)
        if cache is not None:
            state.input_mixer_caches[step] = cache
        if sublayer.kind == "f":
            continue
        state.attention_caches[step] = sublayer.fn.source.init_cache(state, dtype, device)
        core = sublayer.fn.core
        core_cache = core.init_cache(state, device) if isinstance(core, Core) else None
        if core_cache is not None:
            state.core_caches[step] = core_cache

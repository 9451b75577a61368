"""What the sublayers of a stack remember in one decoding session."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flagformer.attention.cores import Core
from flagformer.flow import DecodeState
from flagformer.stack.sublayer import Sublayer


def open_session(
    state: DecodeState, steps: Sequence[Sublayer], dtype: torch.dtype, device: torch.device
) -> None:
    """Asks every sublayer, at each step at which it runs, for its memory."""
    for step, sublayer in enumerate(steps):
        entry = sublayer.entry.session(state, dtype, device)
        if entry is not None:
            state.entries[step] = entry
        if sublayer.kind == "f":
            continue
        state.steps[step] = sublayer.fn.source.session(state, dtype, device)
        core = sublayer.fn.core
        session = core.session(state, device) if isinstance(core, Core) else None
        if session is not None:
            state.cores[step] = session

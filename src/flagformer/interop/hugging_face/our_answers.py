"""The answers of a model of this library to probes, with the greedy tokens of another as the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flagformer.interop.hugging_face.parity import Answer, Probe


def our_answer(model: Any, model_type: str, probe: Probe, tokens: Tensor | None) -> Answer:
    """The answer of a model.

    Args:
        tokens: [B, N], the greedy tokens of transformers; step i reads those before i, so that equal tokens
            at every step are equal greedy texts.
    """
    if tokens is None:
        return Answer(_forward(model, model_type, probe))
    if model.flags["model"] == "xtransformer":
        return _of_pair(model, probe, tokens)
    return _of_decoder(model, probe, tokens)


def _forward(model: Any, model_type: str, probe: Probe) -> Tensor:
    if probe.mask is None:
        out = model(probe.inputs.to(next(model.parameters()).dtype))
        out = out[:, 0] if model_type == "clip_vision_model" else out
    else:
        out = model(probe.inputs, mask=probe.mask)
        out = out[probe.mask] if out.dim() == 3 else out
    return out.flatten(0, -2)


def _of_decoder(model: Any, probe: Probe, tokens: Tensor) -> Answer:
    inputs, mask = probe.inputs, probe.mask
    assert mask is not None
    starts = None if mask.all() else (~mask).sum(1)
    length = inputs.shape[1]
    if probe.cached:
        state = model.init_state(len(inputs), length + tokens.shape[1], seq_start_pos=starts)
        parts: Sequence[Tensor] = (inputs, *(one[:, None] for one in tokens[:, :-1].unbind(1)))
        logits = torch.cat([model(part, state=state) for part in parts], dim=1)
    else:
        logits = model(torch.cat([inputs, tokens[:, :-1]], dim=1), seq_start_pos=starts)
    steps = logits[:, length - 1 :]
    return Answer(torch.cat([logits[:, :length][mask], steps.flatten(0, 1)]), steps.argmax(-1))


def _of_pair(model: Any, probe: Probe, tokens: Tensor) -> Answer:
    net = model.decoder.net
    given = {"context": model.encode(probe.inputs, probe.mask), "context_mask": probe.mask}
    first = torch.full_like(tokens[:, :1], probe.start)
    if probe.cached:
        state = net.init_state(len(tokens), tokens.shape[1])
        parts = [net(first, state=state, **given)]
        parts += [net(one[:, None], state=state) for one in tokens[:, :-1].unbind(1)]
        steps = torch.cat(parts, dim=1)
    else:
        steps = net(torch.cat([first, tokens[:, :-1]], dim=1), **given)
    return Answer(steps.flatten(0, 1), steps.argmax(-1))

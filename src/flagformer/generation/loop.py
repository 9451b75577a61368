"""The decoding loop: one forward over the prompt, then one token a step, every row at once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flagformer.generation.prompts import Prompts
from flagformer.generation.sampling import Sampler


class CausalModel(Protocol):
    """What the loop needs of a model."""

    def init_state(self, batch: int, length: int, window: int | None, seq_start_pos: Tensor | None) -> Any:
        """Room for `length` tokens a row; rows begin at column `seq_start_pos`."""

    def to_logits(self, embeddings: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""

    def __call__(self, ids: Tensor, **how: Any) -> Tensor:
        """ids [B, T] -> embeddings [B, T, D], with `return_embeddings=True`."""


@dataclass(frozen=True)
class Ending:
    """After `seq_len` new tokens; a row also after `eos_token`, with `pad_value` from there on."""

    seq_len: int
    eos_token: int | None = None
    pad_value: int = 0


def decode(
    model: CausalModel,
    prompts: Prompts,
    ending: Ending,
    sample: Sampler,
    window: int | None = None,
    cached: bool = True,
    side: Mapping[str, Any] | None = None,
    embed_ids: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Draw new tokens after every prompt: long [B, seq_len].

    With `cached` each token is read once; without, every step reads the whole row again and draws the same.
    `window`: every token sees at most the last so many. `side`: further keywords of the forward (context,
    context_mask), which a state keeps. `embed_ids`: [B, T + seq_len] for each name, ids beside the tokens.
    The loop stops when all rows have ended. Inputs are taken as checked.
    """
    batch, prompt_len = prompts.ids.shape
    total, pad_value = prompt_len + ending.seq_len, ending.pad_value
    # Made outside inference mode: what is returned may serve as training data.
    tokens = torch.full((batch, total), pad_value, dtype=torch.long, device=prompts.ids.device)
    tokens[:, :prompt_len] = prompts.ids
    with torch.inference_mode():
        room = total - 1 if cached else 0
        next_logits = _reader(model, prompts, room, window, dict(side or {}), embed_ids or {})
        ended = None if ending.eos_token is None else tokens.new_zeros(batch, dtype=torch.bool)
        for position in range(prompt_len, total):
            drawn = sample(next_logits(tokens[:, :position]))
            if ended is not None:
                drawn = drawn.masked_fill(ended, pad_value)
            tokens[:, position] = drawn
            if ended is not None:
                ended |= drawn == ending.eos_token
                if ended.all():
                    break
    return tokens[:, prompt_len:].clone()


def _reader(
    model: CausalModel,
    prompts: Prompts,
    room: int,
    window: int | None,
    side: dict[str, Any],
    embed_ids: Mapping[str, Tensor],
) -> Callable[[Tensor], Tensor]:
    """A function from all tokens so far [B, n] to the logits of the next [B, V]; no state without room."""
    starts = prompts.starts

    def beside(first: int, end: int) -> dict[str, Any]:
        ids = {name: value[:, first:end] for name, value in embed_ids.items()}
        return {"embed_ids": ids} if ids else {}

    def read_all(tokens: Tensor) -> Tensor:
        how = {**side, **beside(0, tokens.shape[1])}
        embeddings = model(tokens, return_embeddings=True, seq_start_pos=starts, window=window, **how)
        return model.to_logits(embeddings[:, -1:])[:, 0]

    if not room:
        return read_all
    state = model.init_state(len(prompts.ids), room, window=window, seq_start_pos=starts)

    def read_new(tokens: Tensor) -> Tensor:
        new = {**(side if state.length == 0 else {}), **beside(state.length, tokens.shape[1])}
        embeddings = model(tokens[:, state.length :], return_embeddings=True, state=state, **new)
        return model.to_logits(embeddings[:, -1:])[:, 0]

    return read_new


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is back in the mode it had, however they were mixed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

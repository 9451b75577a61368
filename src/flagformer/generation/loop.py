"""The decoding loop: one forward over the prompt, then one token a step, every row at once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flagformer.generation.contrast import ContrastiveDecoding, contrasted
from flagformer.generation.next_token import NextTokenLogits
from flagformer.generation.prompts import Prompts
from flagformer.generation.sampling import Sampler
from flagformer.ops.sharded import without_gradient


class CausalModel(Protocol):
    """What the loop needs of a model."""

    def init_state(self, batch: int, length: int, window: int | None, seq_start_pos: Tensor | None) -> Any:
        """Room for `length` tokens a row; rows begin at column `seq_start_pos`."""

    def to_logits(self, embeddings: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""

    def __call__(self, ids: Tensor, **how: Any) -> Tensor:
        """ids [B, T] -> embeddings [B, T, D], with `return_embeddings=True`."""


@dataclass(frozen=True)
class StoppingCriteria:
    """After `seq_len` new tokens; a row also after `eos_token`, with `pad_value` from there on."""

    seq_len: int
    eos_token: int | None = None
    pad_value: int = 0


def decode(
    model: CausalModel,
    prompts: Prompts,
    ending: StoppingCriteria,
    sample: Sampler,
    window: int | None = None,
    cached: bool = True,
    side: Mapping[str, Any] | None = None,
    embed_ids: Mapping[str, Tensor] | None = None,
    against: ContrastiveDecoding | None = None,
) -> Tensor:
    """Draw new tokens after every prompt: long [B, seq_len].

    With `cached` each token is read once; without, every step reads the whole row again and draws the same.
    `window`: every token sees at most the last so many. `side`: further keywords of the forward (context,
    context_mask), which a state keeps. `embed_ids`: [B, T + seq_len] for each name, ids beside the tokens.
    `against`: models whose logits are taken off (contrastive decoding). The loop stops when all rows have
    ended. Inputs are taken as checked.
    """
    batch, prompt_len = prompts.ids.shape
    total, pad_value = prompt_len + ending.seq_len, ending.pad_value
    # Made outside inference mode: what is returned may serve as training data.
    tokens = torch.full((batch, total), pad_value, dtype=torch.long, device=prompts.ids.device)
    tokens[:, :prompt_len] = prompts.ids
    rivals = () if against is None else [amateur.model for amateur in against.amateurs]
    with without_gradient(model, *rivals):

        def reader(model: Any, window: int | None, cached: bool) -> NextTokenLogits:
            return NextTokenLogits(
                model, prompts, total - 1 if cached else 0, window, side or {}, embed_ids or {}
            )

        next_logits: Callable[[Tensor], Tensor] = reader(model, window, cached)
        if against is not None:
            amateurs = [reader(*amateur) for amateur in against.amateurs]
            next_logits = contrasted(next_logits, amateurs, against.beta, against.alpha)
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

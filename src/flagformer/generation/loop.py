"""The decoding loop: one forward over the prompt, then one token per step for all rows."""

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
    """The interface of a model for decoding."""

    def init_state(self, batch: int, length: int, window: int | None, seq_start_pos: Tensor | None) -> Any:
        """A decode state for `length` tokens per row; rows begin at column `seq_start_pos`."""

    def to_logits(self, embeddings: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""

    def __call__(self, ids: Tensor, **kwargs: Any) -> Tensor:
        """ids [B, T] -> embeddings [B, T, D], with `return_embeddings=True`."""


@dataclass(frozen=True)
class StoppingCriteria:
    """Stop after `seq_len` new tokens; a row also after `eos_token`, or where `stop` says so, followed by
    `pad_value`. `stop` is called with the new tokens [B, n] and returns bool [B]."""

    seq_len: int
    eos_token: int | None = None
    pad_value: int = 0
    stop: Callable[[Tensor], Tensor] | None = None

    @property
    def by_row(self) -> bool:
        """Whether a row can end before the others."""
        return self.eos_token is not None or self.stop is not None

    def ended(self, new: Tensor) -> Tensor:
        """[B] bool, the rows that end with the last of the new tokens [B, n]."""
        last = new[:, -1]
        if self.stop is None:
            return last == self.eos_token  # type: ignore[return-value]
        found = self.stop(new).to(new.device)
        return found if self.eos_token is None else found | (last == self.eos_token)


def decode(
    model: CausalModel,
    prompts: Prompts,
    stopping: StoppingCriteria,
    sample: Sampler,
    window: int | None = None,
    cached: bool = True,
    kwargs: Mapping[str, Any] | None = None,
    embed_ids: Mapping[str, Tensor] | None = None,
    contrastive: ContrastiveDecoding | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """Draw new tokens after every prompt: long [B, seq_len].

    With `cached` each token is read once; without, every step reads the whole row, with the same result.
    `window`: every token attends to at most this many of the last tokens. `kwargs`: further arguments of the
    first forward (context, context_mask), which a state stores. `embed_ids`: [B, T + seq_len] for each name,
    ids that accompany the tokens. `condition`: [B, C], or [B, T + seq_len, C]. `contrastive`: amateur models
    of contrastive decoding. The loop stops when all rows have ended. Inputs must be checked before.
    """
    batch, prompt_len = prompts.ids.shape
    total, pad_value = prompt_len + stopping.seq_len, stopping.pad_value
    # Created outside inference mode: the result may serve as training data.
    tokens = torch.full((batch, total), pad_value, dtype=torch.long, device=prompts.ids.device)
    tokens[:, :prompt_len] = prompts.ids
    models = () if contrastive is None else [amateur.model for amateur in contrastive.amateurs]
    with without_gradient(model, *models):

        def logits_of(model: Any, window: int | None, cached: bool) -> NextTokenLogits:
            cache_length = total - 1 if cached else 0
            more = (kwargs or {}, embed_ids or {}, condition)
            return NextTokenLogits(model, prompts, cache_length, window, *more)

        next_logits: Callable[[Tensor], Tensor] = logits_of(model, window, cached)
        if contrastive is not None:
            amateurs = [logits_of(*amateur) for amateur in contrastive.amateurs]
            next_logits = contrasted(next_logits, amateurs, contrastive.beta, contrastive.alpha)
        ended = tokens.new_zeros(batch, dtype=torch.bool) if stopping.by_row else None
        for position in range(prompt_len, total):
            drawn = sample(next_logits(tokens[:, :position]))
            if ended is not None:
                drawn = drawn.masked_fill(ended, pad_value)
            tokens[:, position] = drawn
            if ended is not None:
                ended |= stopping.ended(tokens[:, prompt_len : position + 1])
                if ended.all():
                    break
    return tokens[:, prompt_len:].clone()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager for eval mode, which restores the mode of every submodule at exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

"""Figures of a trained model on held-out text: perplexity of a whole split, and pseudo-perplexity."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.lab.data import Split
from flagformer.lab.data.text import Text
from flagformer.lab.objectives.masking import MaskedObjective
from flagformer.lab.objectives.next_token import NextToken
from flagformer.lab.train.config import Trial
from flagformer.lab.train.evaluation import SEED
from flagformer.ops.home import home_of

CONTINUES, LEADING = 0x80, 0xC0  # the two leading bits of a byte that continues a character of UTF-8


def perplexity_of_split(
    model: nn.Module, trial: Trial, split: Split, seq_len: int, stride: int
) -> dict[str, Any]:
    """The loss of every token of a split after the first, each scored once.

    Windows of `seq_len` tokens begin every `stride` tokens, the last one at the end of the text. The first
    window scores all its targets, and each other one the targets that no window before it has: they have at
    least `seq_len - stride` tokens of context.

    Returns:
        `nats`, the mean loss; `perplexity`, its exponential; `bits_per_byte` of the text;
        `bits_per_character`, for bytes, of characters of UTF-8, else None; `accuracy` and `tokens`.

    Raises:
        ValueError: the objective or the data have no such text, or `stride` is outside of 1 to `seq_len`.
    """
    source, objective = _text_of(trial, seq_len, stride), trial.trained_by
    source.check(split, seq_len)
    content, sizes, device = source.content(split), source.sizes(split), home_of(model)[0]
    last = len(content) - 1 - seq_len  # where the last window begins
    starts = [*range(0, last, stride), last]
    nats, right, scored, end = 0.0, 0, 0, 0  # `end`: targets before it are scored
    for group in range(0, len(starts), trial.train.batch_size):
        some = starts[group : group + trial.train.batch_size]
        rows = content[torch.tensor(some)[:, None] + torch.arange(seq_len + 1)].long().to(device)
        logits = objective.ask(model, (rows[:, :-1],), trial.train.segment, losses=False).logits
        losses, hits = objective.losses(logits, rows[:, 1:]), logits.argmax(-1) == rows[:, 1:]
        for row, start in enumerate(some):
            new = slice(end - start, seq_len)
            nats += losses[row, new].double().sum().item()
            right += int(hits[row, new].sum())
            scored += start + seq_len - end
            end = start + seq_len
    read = scored if sizes is None else int(sizes[1:].sum())
    bits = nats / math.log(2)
    return {
        "stride": stride,
        "nats": nats / scored,
        "perplexity": _exponential(nats / scored),
        "bits_per_byte": bits / read if source.is_bytes else None,
        "bits_per_character": bits / _characters(content[1:]) if source.is_bytes and sizes is None else None,
        "accuracy": right / scored,
        "tokens": scored,
    }


def pseudo_perplexity(model: nn.Module, trial: Trial, split: Split, seq_len: int) -> dict[str, Any]:
    """The loss of each token of the evaluated rows, masked alone: `seq_len` forwards for a batch.

    Its mean over all tokens is `nats`, and the exponential `pseudo_perplexity` (Salazar et al. 2019, arXiv
    1910.14659, equation 4).

    Raises:
        ValueError: the objective masks no tokens.
    """
    source, objective = trial.source, trial.trained_by
    if not isinstance(objective, MaskedObjective):
        raise ValueError(
            "`each token` needs `objective: masked_lm` or `masked_diffusion`, but the run has "
            f"`{objective.model_dump().get('name')}`"
        )
    rows, total, count = max(1, trial.train.batch_size * source.seq_len // seq_len), 0.0, 0
    for step in range(trial.evaluate.batches):
        ids = source.batch(split, step, SEED, rows, seq_len)[0].to(home_of(model)[0])
        for place in range(seq_len):
            masked = ids.clone()
            masked[:, place] = source.num_tokens
            logits = objective.ask(model, (masked,), None, losses=False).logits[:, place]
            total += nn.functional.cross_entropy(logits.double(), ids[:, place], reduction="sum").item()
        count += ids.numel()
    return {"nats": total / count, "pseudo_perplexity": _exponential(total / count), "tokens": count}


def _text_of(trial: Trial, seq_len: int, stride: int) -> Text:
    """The text of a trial; ValueError if a stride is not possible."""
    source, objective = trial.source, trial.trained_by
    if not isinstance(objective, NextToken) or not isinstance(source, Text) or source.is_packed:
        raise ValueError(
            "`stride` needs `objective: next_token` and text in plain windows, but the run has `objective: "
            f"{objective.model_dump().get('name')}` and `source: {source.model_dump()['source']}`"
        )
    if not 1 <= stride <= seq_len:
        raise ValueError(f"`stride` must be from 1 to the length of a window, {seq_len}, but is {stride}")
    return source


def _exponential(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def _characters(content: Tensor) -> int:
    """The number of characters that begin in bytes of UTF-8."""
    return int(((content.to(torch.uint8) & LEADING) != CONTINUES).sum())

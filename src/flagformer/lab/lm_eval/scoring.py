"""Log-likelihoods of token ids under a causal model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flagformer.generation import evaluating
from flagformer.inputs.requests import check_net
from flagformer.ops.home import home_of

AT_ONCE = 1024  # tokens whose logits are in memory together


class Request(NamedTuple):
    """Tokens to score after a context; together they must not be longer than the model's inputs plus one."""

    context: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The ids that the model reads: the last target is not read."""
        return (self.context + self.targets)[:-1]


class Score(NamedTuple):
    """The score of the targets of a request.

    Attributes:
        log_likelihood: the sum of the log-probabilities of the targets, in nats.
        is_greedy: whether each target is the most likely token.
    """

    log_likelihood: float
    is_greedy: bool


def score(model: Any, requests: Sequence[Request], batch_size: int = 8) -> list[Score]:
    """The log-likelihood of the targets of each request, given its context.

    Rows of equal inputs are read once. Batches are sorted by length, longest first, and padded at the right.

    Args:
        model: a causal TransformerWrapper, in any mode.
        batch_size: rows of a batch.

    Raises:
        ValueError: for a model that is not causal, and for requests without context or targets.
    """
    check_net(model, "model")
    rows: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        if not request.context or not request.targets:
            raise ValueError(f"a request must have a context and targets, but request {index} is {request}")
        rows.setdefault(request.inputs, []).append(index)
    ordered = iter(sorted(rows, key=len, reverse=True))
    found: dict[int, Score] = {}
    with evaluating(model), torch.no_grad():
        while batch := list(islice(ordered, batch_size)):
            wanted = [[requests[index] for index in rows[row]] for row in batch]
            scores = _score_batch(model, batch, wanted)
            found.update(zip((index for row in batch for index in rows[row]), scores, strict=True))
    return [found[index] for index in range(len(requests))]


def _score_batch(model: Any, batch: list[tuple[int, ...]], wanted: list[list[Request]]) -> Iterator[Score]:
    """The scores of the requests of each row, in their order."""
    embeddings = _embeddings(model, batch)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    sizes: list[int] = []
    for number, (row, requests) in enumerate(zip(batch, wanted)):
        for request in requests:
            count = len(request.targets)
            sizes.append(count)
            rows += [number] * count
            columns += range(len(row) - count, len(row))
            targets += request.targets
    device = embeddings.device
    selected = embeddings[torch.tensor(rows, device=device), torch.tensor(columns, device=device)]
    parts = zip(selected.split(AT_ONCE), torch.tensor(targets, device=device).split(AT_ONCE))
    per_token = [_per_token(model, *part) for part in parts]
    values, greedy = (torch.cat(each).cpu() for each in zip(*per_token))
    for value, most_likely in zip(values.split(sizes), greedy.split(sizes)):
        yield Score(value.sum().item(), bool(most_likely.all()))


def _embeddings(model: Any, batch: list[tuple[int, ...]]) -> Tensor:
    """[B, T, D] of the last layer for rows of ids."""
    device, longest = home_of(model)[0], len(batch[0])
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.bool)
    for index, row in enumerate(batch):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    padding = {} if bool(mask.all()) else {"mask": mask.to(device)}
    embeddings: Tensor = model(ids.to(device), return_embeddings=True, **padding)
    return embeddings


def _per_token(model: Any, embeddings: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D], [N] -> log-probabilities [N] in fp64, and whether each target is the most likely token."""
    logits = model.to_logits(embeddings[None])[0].float()
    chosen = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return chosen.double(), logits.argmax(dim=-1) == targets

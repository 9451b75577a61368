"""The rows of the table: one timed call, its size, its repetitions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bare import FAMILIES, LONG_FAMILIES, Size
from contenders import Contender
from wrapped import WRAPPED_FAMILIES, Stepper, batch_of

SMALL = {"dim": 64, "depth": 2, "heads": 4, "length": 64}


@dataclass(frozen=True)
class Row:
    """`calls` timed calls make one sample; the time in the table is divided by `units`."""

    name: str
    size: Size
    kind: str
    batch: int
    length: int
    rounds: int
    calls: int = 1

    @property
    def units(self) -> int:
        return self.length * self.calls if self.kind == "decode" else self.calls

    @property
    def unit(self) -> str:
        return "ms/token" if self.kind == "decode" else "ms"


PROMPT = 32


def rows(quick: bool) -> list[Row]:
    """Every row. `quick` shortens rounds and lengths to a smoke run without meaningful figures."""
    found = []
    long, rounds = (128, 2) if quick else (512, 9)
    for family in FAMILIES:
        size = Size(family)
        for kind in ("train", "train+adamw", "infer"):
            found.append(Row(f"{kind}/{family}", size, kind, 4, long, rounds))
    for family in ("alibi", "t5", *LONG_FAMILIES):
        length, often = (256, 2) if quick else (2048, 5)
        found.append(Row(f"long/{family}", Size(family, depth=2, length=2048), "train", 1, length, often))
    for family in WRAPPED_FAMILIES:
        length, often = (64, 2) if quick else (256, 7)
        found.append(Row(f"step/{family}", Size(family, depth=4), "step", 4, length, often))
    for family in FAMILIES:
        size = Size(family, **SMALL)
        for kind in ("train", "infer"):
            found.append(
                Row(f"fixed/{kind}/{family}", size, kind, 1, 64, 4 if quick else 15, 5 if quick else 20)
            )
    for family in FAMILIES:
        for batch in (1, 8):
            for count, many in ((224, 5), (992, 3)):
                length, often = (count // 16, 2) if quick else (count, many)
                found.append(
                    Row(f"decode/{family}/b{batch}/{count}", Size(family), "decode", batch, length, often)
                )
    return found


def work(row: Row, contender: Contender | Stepper) -> Callable[[], object]:
    """The function timed for one sample."""
    if isinstance(contender, Stepper):
        batch = batch_of(row.size, row.batch, row.length)
        return _repeat(lambda: _step(contender, batch), row.calls)
    generator = torch.Generator().manual_seed(2)
    if row.kind == "decode":
        prompt = torch.randint(row.size.vocab, (row.batch, PROMPT), generator=generator)
        return _repeat(lambda: contender.generate(prompt, row.length), row.calls)
    ids = torch.randint(row.size.vocab, (row.batch, row.length + 1), generator=generator)
    if row.kind == "infer":
        return _repeat(lambda: _infer(contender, ids[:, :-1]), row.calls)
    optimizer = _optimizer(contender) if row.kind == "train+adamw" else None
    return _repeat(lambda: _train(contender, ids, optimizer), row.calls)


def _optimizer(contender: Contender) -> torch.optim.Optimizer:
    return torch.optim.AdamW(contender.model.parameters(), lr=1e-4, fused=True)


def _repeat(call: Callable[[], object], calls: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(calls):
            call()

    return repeated


def _infer(contender: Contender, ids: Tensor) -> Tensor:
    contender.model.eval()
    with torch.inference_mode():
        return contender.logits(ids)


def _step(contender: Stepper, batch: Tensor) -> Tensor:
    """The wrapper's own loss, and its gradients."""
    contender.model.train()
    contender.model.zero_grad(set_to_none=True)
    loss = contender.loss(batch)
    loss.backward()
    return loss


def _train(contender: Contender, ids: Tensor, optimizer: torch.optim.Optimizer | None) -> Tensor:
    """Loss and gradients on all positions; the loss is the same for all contenders."""
    contender.model.train()
    contender.model.zero_grad(set_to_none=True)
    logits = contender.logits(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    return loss

"""A metric: the sum and the count over the targets of a batch; results have their quotient."""

from torch import Tensor

from flagformer.lab.data import IGNORE


def overconfidence(logits: Tensor, targets: Tensor) -> tuple[float, int]:
    """Mean probability of the most likely token minus accuracy. Logits are [B, T, V], targets [B, T]."""
    scored = targets != IGNORE
    best, chosen = logits.float().softmax(-1).max(-1)
    excess = best - (chosen == targets).float()
    return excess[scored].sum().item(), int(scored.sum())

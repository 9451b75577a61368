"""An objective: next token with the focal loss of arXiv:1708.02002."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from flagformer.lab.objectives import token_losses
from flagformer.lab.objectives.next_token import NextToken


class FocalNextToken(NextToken):
    """The loss of a token of probability p is -(1 - p) ** gamma * log(p): easy tokens count less."""

    summary: ClassVar[str] = "Each token is predicted from those before it, with the focal loss."

    name: str  # the import path
    gamma: float = Field(default=2.0, ge=0, le=10, description="0: cross entropy.")

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """fp32 [B, T], 0 where nothing is scored."""
        nats = token_losses(logits, targets)
        return (1 - (-nats).exp()) ** self.gamma * nats

"""A model that reads tokens by an embedding of its own or by that of another model."""

from __future__ import annotations

from torch.nn import Module

from flagformer.ops.borrow import borrow
from flagformer.stack.whole import Whole


class TokenReader(Whole):
    """A module whose `token_emb` may be that of another one.

    Attributes:
        token_emb_owner: the module whose `token_emb` is read; None: this one's own.
    """

    token_emb_owner: TokenReader | None = None

    @property
    def token_emb(self) -> Module:
        """The token embedding. That of another module is looked up at each call: an adapter that takes its
        place, as PEFT's do, is read here too."""
        own = self._modules.get("token_emb")
        if own is not None:
            return own
        if self.token_emb_owner is None:
            raise AttributeError("token_emb")
        return self.token_emb_owner.token_emb

    def share_token_emb(self, reader: TokenReader) -> None:
        """Both read tokens by the embedding of `reader`, which becomes a part of this module."""
        self.add_module("token_emb", reader.token_emb)
        del reader._modules["token_emb"]
        borrow(reader, {"token_emb_owner": self})

"""A model with its own token embedding or that of another model."""

from __future__ import annotations

from torch.nn import Module

from flagformer.ops.borrow import borrow
from flagformer.stack.whole import Whole


class TokenReader(Whole):
    """A module whose `token_emb` may belong to another module.

    Attributes:
        token_emb_owner: the module that owns `token_emb`; None: this one.
    """

    token_emb_owner: TokenReader | None = None

    @property
    def token_emb(self) -> Module:
        """The token embedding. That of another module is looked up at each call, so that an adapter that
        replaces it, such as PEFT's, is used here too."""
        own = self._modules.get("token_emb")
        if own is not None:
            return own
        if self.token_emb_owner is None:
            raise AttributeError("token_emb")
        return self.token_emb_owner.token_emb

    def share_token_emb(self, reader: TokenReader) -> None:
        """Share the embedding of `reader` and make it a submodule of this module."""
        self.add_module("token_emb", reader.token_emb)
        del reader._modules["token_emb"]
        borrow(reader, {"token_emb_owner": self})

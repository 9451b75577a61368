"""The calling convention of encoder-decoders: an id of an audit is a token of the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.audit.calls import NOTHING, CallInputs
from flagformer.audit.calls.plain import PlainCalls
from flagformer.ops.home import home_of
from flagformer.wrappers.memformer import Memformer
from flagformer.wrappers.routing_pair import RoutingTransformerEncDec
from flagformer.wrappers.xtransformer import XTransformer

SOURCE_LENGTH = 8
Pair = XTransformer | Memformer | RoutingTransformerEncDec


class PairCalls(PlainCalls):
    """Logits for each token of the target, given one random source for every row.

    Without further inputs the model's own forward is called, with source and target, so that a target that
    reaches the encoder or the memory is found; other calls are of the decoder with the encoder's output.

    Args:
        model: an XTransformer, a RoutingTransformerEncDec, or a Memformer with a decoder.
    """

    def __init__(self, model: Pair) -> None:
        self.pair = model
        routing = isinstance(model, RoutingTransformerEncDec)
        halves: Any = (model.enc, model.dec) if routing else (model.encoder, model.decoder)
        self.encoder, self.decoder = halves[0], halves[1].net
        super().__init__(self.decoder)

    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        return self._whole(ids) if given == NOTHING else super().forward(ids, given)

    def context(self, ids: Tensor) -> Tensor | None:
        source = self.source(ids)
        if isinstance(self.pair, Memformer):
            encoded: Tensor = self.pair(source, **self._conditions(ids)).enc_out
        else:
            encoded = self.encoder(source, return_embeddings=True, **self._condition(self.encoder, source))
        return encoded

    def learn(self, ids: Tensor) -> Tensor:
        if not isinstance(self.pair, Memformer):
            return self._whole(ids)
        source, target = self.source(ids), torch.cat([ids, ids[:, -1:]], dim=1)
        given = self._conditions(ids)
        read = self.pair(source, **given)  # a segment before, for the parameters that write memory
        logits: Tensor = self.pair(source, target, read.mem, return_logits=True, **given)[0].dec_out
        return logits

    def longest(self) -> int | None:
        memformer = isinstance(self.pair, Memformer)  # it reads targets of limited length
        return self.decoder.max_seq_len if memformer else super().longest()

    def source(self, ids: Tensor) -> Tensor:
        """The same source for every row, [B, S]."""
        length = min(SOURCE_LENGTH, self.encoder.max_seq_len)
        generator = torch.Generator().manual_seed(0)
        row = torch.randint(self.encoder.num_tokens, (1, length), generator=generator)
        return row.to(home_of(self.pair)[0]).expand(len(ids), -1)

    def _whole(self, ids: Tensor) -> Tensor:
        """The logits of the model's own forward, which does not read the target's last token."""
        source, target = self.source(ids), torch.cat([ids, ids[:, -1:]], dim=1)
        given = self._conditions(ids)
        if isinstance(self.pair, RoutingTransformerEncDec):
            logits: Tensor = self.pair(source, ids, **given)[0]
        elif isinstance(self.pair, Memformer):
            logits = self.pair(source, target, return_logits=True, **given)[0].dec_out
        else:
            _, outputs = self.pair(source, target, return_outputs=True, **given)
            logits = outputs.logits
            if logits is None:  # `loss_chunks`
                logits = self.decoder.to_logits(outputs.embeddings)
        return logits

    def _conditions(self, ids: Tensor) -> dict[str, Tensor]:
        """The condition of the model, if a half reads one."""
        return {**self._condition(self.encoder, ids), **self._condition(self.decoder, ids)}

    def _condition(self, half: Any, ids: Tensor) -> dict[str, Tensor]:
        width = half.attn_layers.condition_dim
        if width is None:
            return {}
        row = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
        return {"condition": row.to(*home_of(half)).expand(len(ids), -1)}

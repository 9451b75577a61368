"""The arguments of a TransformerWrapper's forward, read once into one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flagformer.flow import Layout
from flagformer.flow.mask_rules import MaskMod
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.inputs.interleaving import (
    InterleavedInputs,
    NoInterleaving,
    State,
    make_interleaving,
    read_prepended,
)
from flagformer.inputs.segments import cross_attention_context, of_tokens, read_memory
from flagformer.inputs.tokens import check_ids, check_positions, prefix_lengths
from flagformer.stack import forward_inputs
from flagformer.stack.forward_inputs import ForwardInputs
from flagformer.stack.inputs import check_condition
from flagformer.stack.layouts import read_layout


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of a model in addition to its token ids [B, T], checked.

    Attributes:
        tokens: layout of the T tokens.
        rows: tokens with memory tokens and prepended embeddings inserted, [B, L].
        memory: hidden states of earlier tokens, and memory slots; None: there are none.
        prefix: [B] or [1], the number of first tokens to which all attend; None: there is no prefix.
        stack: the inputs of the layers, for the rows.
    """

    tokens: Layout
    rows: NoInterleaving | InterleavedInputs
    memory: RecurrentState | None
    prefix: Tensor | None
    stack: ForwardInputs


@dataclass(frozen=True)
class CallArguments:
    """The arguments of `TransformerWrapper.forward` about its tokens, as the user gave them."""

    mask: Tensor | None
    attn_mask: Tensor | MaskMod | None
    context: Tensor | None
    context_mask: Tensor | None
    seq_start_pos: Tensor | None
    seq_lens: Any
    pos: Tensor | None
    prefix_attn_len: int | Tensor | None
    window: int | None
    state: State | None
    mems: RecurrentState | Tensor | Sequence[Tensor] | None
    mem_masks: Tensor | Sequence[Tensor] | None
    return_mems: bool
    prepend_embeds: Tensor | None
    prepend_mask: Tensor | None
    condition: Tensor | None

    def read(self, model: Any, x: Tensor) -> ModelInputs:
        """Check the arguments and turn them into layouts, rules and rows.

        Args:
            model: the TransformerWrapper.
            x: its token ids [B, T].
        """
        check_ids(x, model.num_tokens)
        batch, length = x.shape
        layers, state = model.attn_layers, self.state
        names = ("state", "seq_lens", "seq_start_pos", "prefix_attn_len", "prepend_embeds")
        others = {name: getattr(self, name) for name in names}
        memory = read_memory(model, batch, length, self.mems, self.mem_masks, self.return_mems, others)
        earlier = of_tokens(memory)
        tokens = read_layout(
            batch, length, x.device, state, earlier,
            mask=self.mask, seq_start_pos=self.seq_start_pos, seq_lens=self.seq_lens, pos=self.pos,
        )  # fmt: skip
        check_positions(tokens, model.pos_emb.limit, model.max_seq_len)
        width = model.embedding.width
        prepended = read_prepended(self.prepend_embeds, self.prepend_mask, batch, width, layers)
        prefix = None if self.prefix_attn_len is None else prefix_lengths(self.prefix_attn_len, x)
        rows = make_interleaving(model.memory.pattern, tokens, prepended, state, layers)
        condition = self.condition
        check_condition(condition, layers.condition_dim, batch, length, earlier is not None, rows.state)
        if condition is not None and condition.dim() == 3:
            condition = rows.spread(condition, 0.0)
        stack = forward_inputs.read_inputs(
            layers,
            batch,
            rows.layout,
            rows.state,
            model.recurrence.shifted(earlier),
            attn_mask=rows.mask(self.attn_mask, layers.dims.heads, batch),
            context=cross_attention_context(model, memory, self.context, self.context_mask, state),
            context_mask=self.context_mask,
            prefix=rows.prefix(prefix),
            window=self.window,
        ).of_tokens(rows.spread(x, -1), condition)
        return ModelInputs(tokens, rows, memory, prefix, stack)

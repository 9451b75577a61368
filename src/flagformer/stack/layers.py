"""AttentionLayers, a stack of sublayers configured by flags, and its subclasses with fixed flags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from flagformer.flags import CATALOGUE, ErrorCollector, Place, resolve
from flagformer.flags.typed import Flags
from flagformer.flow import (
    AttentionBias,
    Causal,
    DecodeState,
    Dims,
    MaskRule,
    OutputCollector,
    PrefixLM,
    SegmentMemory,
    SideInputs,
)
from flagformer.flow.mask_rules import MaskMod
from flagformer.flow.recurrent_state import RecurrentState, read_memories
from flagformer.ops.full_precision import in_full
from flagformer.ops.home import home_of
from flagformer.ops.identity import identity
from flagformer.ops.sharded import as_forward
from flagformer.position.none import NoPositionBias, NoRotation
from flagformer.stack.assemble import build_sublayers
from flagformer.stack.context_dropout import drop_context
from flagformer.stack.explain import explain_stack
from flagformer.stack.forward_inputs import ForwardInputs, read_inputs
from flagformer.stack.inputs import (
    check_condition,
    check_size,
    check_starts,
    check_vectors,
)
from flagformer.stack.layouts import context_bias, read_layout
from flagformer.stack.parallel_groups import ParallelGroups, refuse_equal_norms
from flagformer.stack.places import final_place, placed_modules
from flagformer.stack.refusals import (
    components_of,
    condition_width,
    fixed_flags,
    refuse_carry,
    refuse_idle_context,
    refuse_leak,
    refuse_mixer_arguments,
    refuse_mixers,
    refuse_shared,
)
from flagformer.stack.rotations import Rotations
from flagformer.stack.session import cache_signature, init_caches
from flagformer.stack.sublayer import Sublayer, TensorFn, with_side
from flagformer.stack.weight_init import apply_init, undo
from flagformer.stack.whole import Whole


class AttentionLayers(Whole):
    """A stack of attention and feedforward sublayers: [B, T, D] -> [B, T, D].

    Args:
        **flags: see `docs/flags.md`; `dim` and `depth` are required. Any slot also takes a `Spec`, a class
            or a module under the slot's name.

    Raises:
        FlagError: for unknown names, invalid values and conflicting flags; one error lists all findings.
    """

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__()
        self.resolved = resolved = resolve(flags, CATALOGUE)
        self.dims: Dims = self._one("dims").build()
        gathered = ErrorCollector()
        self.rotations = Rotations(placed_modules(resolved), self.dims, gathered)
        self.position_bias = gathered.collect(lambda: self._one("position_bias").build(self.dims))
        self.executor = self._one("executor").build()
        groups = ParallelGroups.of(resolved.plan)
        residual = self._one("residual").build(self.dims, len(set(groups.ids)))
        self.residual = groups.wrap_residual(self.executor.wrap_residual(residual))
        placement = self._one("norm_position").build()

        def norm(place: Place) -> TensorFn:
            made: TensorFn = self._one("norm").at(place).build(self.dims.dim)
            return made

        build = partial(build_sublayers, resolved, self.dims, norm, placement)
        self.sublayers = build(self.rotations, self.residual, gathered, self.position_bias)
        self.starts = [filler.build() for filler in resolved.stack["init"]]
        apply_init(self.starts, list(self.sublayers))
        self.final_norm: TensorFn = norm(final_place(resolved.plan)) if placement.final else identity
        self.attentions = [sublayer.fn for sublayer in self.sublayers if sublayer.kind in ("a", "c")]
        self.has_self, self.has_cross, self.has_mixers = (
            any(s.kind == kind for s in self.sublayers) for kind in ("a", "c", "m")
        )
        # whether keys are rotated when they are read from a decode state
        self.derives_keys = any(s.kind == "a" and s.fn.source.derives_keys for s in self.sublayers)
        self.cache_signature = cache_signature(self.steps)
        self.condition_dim = condition_width(self)
        # steps that read hidden states of the previous segment: `mems` holds one tensor for each
        self.recurrent_steps = tuple(
            step for step, s in enumerate(self.steps) if s.kind == "a" or s.input_mixer.reads_previous
        )
        refuse_mixers(self)
        refuse_equal_norms(resolved, self.sublayers, groups)
        refuse_shared(components_of(resolved), self)
        refuse_idle_context(resolved.flags, self.has_cross)
        refuse_carry(self.steps, resolved)
        self.is_acausal = refuse_leak(self.sublayers, resolved.flags, self.time_rule(None) is not None)

    def reset_parameters(self) -> None:
        undo(self.starts, list(self.sublayers))
        super().reset_parameters()
        apply_init(self.starts, list(self.sublayers))

    def _one(self, slot: str) -> Any:
        return self.resolved.one(slot)

    @property
    def flags(self) -> dict[str, Any]:
        """Flags that build an equal stack."""
        return dict(self.resolved.flags)

    @property
    def dim(self) -> int:
        return self.dims.dim

    @property
    def causal(self) -> bool:
        return self.dims.causal

    @property
    def is_relative(self) -> bool:
        """Whether a rotation, a position bias or a mixer encodes relative positions."""
        parts = (self.position_bias, *self.rotations)
        return self.has_mixers or not all(isinstance(part, (NoPositionBias, NoRotation)) for part in parts)

    @property
    def can_cache(self) -> bool:
        """Whether the stack can be decoded step by step: outputs never depend on later tokens.

        True for a PrefixDecoder, whose prefix must be in the first block.
        """
        return self.time_rule(None) is not None and not self.is_acausal

    @property
    def steps(self) -> list[Sublayer]:
        """Sublayers in the order of execution; a tied sublayer appears at each of its steps."""
        sublayers = list(self.sublayers)
        return [sublayers[index] for index in self.resolved.plan.order]

    @property
    def hidden_steps(self) -> tuple[int, ...]:
        """The first step of each group of parallel sublayers: the steps with a hidden state of their own."""
        order, is_last = self.resolved.plan.order, ParallelGroups.of(self.resolved.plan).is_last
        return tuple(step for step in range(len(order)) if step == 0 or is_last[order[step - 1]])

    def explain(self) -> str:
        """Describe the slots, the kernel of each attention with its reason, and the saved activations."""
        return explain_stack(self)

    def time_rule(self, prefix: Tensor | None) -> MaskRule | None:
        """Return the causal or prefix-LM mask rule; None if attention is bidirectional."""
        if prefix is not None:
            raise ValueError(
                f"`prefix_attn_len` is for PrefixDecoder, but these layers are {type(self).__name__}"
            )
        return Causal() if self.dims.causal else None

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        attn_mask: Tensor | MaskMod | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        prefix_attn_len: Tensor | None = None,
        window: int | None = None,
        state: DecodeState | None = None,
        mems: RecurrentState | Sequence[Tensor] | None = None,
        mem_masks: Tensor | Sequence[Tensor] | None = None,
        condition: Tensor | None = None,
        token_ids: Tensor | None = None,
        inputs: ForwardInputs | None = None,
        collector: OutputCollector | None = None,
    ) -> Tensor:
        """Run the stack.

        Args:
            x: [B, T, D].
            mask: [B, T] bool, True for valid tokens. Default: all are valid.
            attn_mask: [T, S], [H, T, S], [B, T, S] or [B, H, T, S] bool, True where a query may attend; with
                `mems` S is T, or M + T. Or a function `(b, h, q_idx, kv_idx) -> bool` of indices that
                broadcast, as FlexAttention's `mask_mod`: cache positions, negative in `mems`.
            context: [B, S, D_context] for cross-attention. While decoding it is read once, with the prompt.
            context_mask: [B, S] bool, True for valid tokens.
            seq_start_pos: [B] index of the first valid token of each left-padded row; it gets position 0.
            prefix_attn_len: [B] or [1], PrefixDecoder only: number of first valid tokens to which every
                query attends. While decoding, only for the first block, which must contain them.
            window: a query attends to at most this many last tokens, itself included. Default: all.
            state: decode state from `init_state`. x continues its tokens and is appended to its caches.
            mems: XL memories of the `recurrent_steps`, a `RecurrentState` or tensors [B, M, D], which
                precede x.
            mem_masks: [B, M] bool or a list of equal masks, True for valid tokens of `mems`.
            condition: [B, C] for all tokens of a row, or [B, T, C], for layers with `condition_dim`; while
                decoding it is that of the new tokens. None: zeros.
            token_ids: [B, T] long, the ids of the tokens, for components that read them; -1 for none.
            inputs: a result of `forward_inputs.read_inputs`, in place of all arguments above.
            collector: collects auxiliary losses, requested tensors and hidden states for `mems`.

        Returns:
            [B, T, D], after the final norm.

        Raises:
            ValueError: for an invalid argument; names it, its value and the accepted values.
        """
        check_vectors(x, self.dim)
        if inputs is None:
            batch, length = x.shape[:2]
            refuse_mixer_arguments(self, {"mems": mems, "mem_masks": mem_masks})
            others = {"state": state, "seq_start_pos": seq_start_pos, "prefix_attn_len": prefix_attn_len}
            memory = read_memories(mems, mem_masks, len(self.recurrent_steps), batch, self.dim, others)
            padding = {"mask": mask, "seq_start_pos": seq_start_pos}
            layout = read_layout(batch, length, x.device, state, memory, **padding)
            check_condition(condition, self.condition_dim, batch, length, memory is not None, state)
            inputs = read_inputs(
                self, batch, layout, state, memory, attn_mask=attn_mask, context=context,
                context_mask=context_mask, prefix=prefix_attn_len, window=window,
            ).of_tokens(token_ids, condition)  # fmt: skip
        x = in_full(x, self)
        side = self._side(inputs, x.dtype, OutputCollector() if collector is None else collector)
        if torch.is_grad_enabled():  # forms that sublayers share, if any is computed again for a backward
            for attention in self.attentions:
                attention.prepare(side)
        h = self.executor.run(self.steps, self.residual, self.residual.open(x), side)
        out = self.residual.close(h, with_side(self.final_norm, side))
        if inputs.state is not None:
            inputs.state.has_condition = inputs.condition is not None
            read = None if side.context_bias is None else side.context_bias.kv
            inputs.state.advance(x.shape[1], inputs.prefix, read)
        return out

    def _side(self, inputs: ForwardInputs, dtype: torch.dtype, collector: OutputCollector) -> SideInputs:
        """Return the masks, rotations, context and caches that the sublayers read in addition to x."""
        layout, state, memory = inputs.layout, inputs.state, inputs.memory
        context, context_mask = inputs.context, inputs.context_mask
        rate = self.dims.context_dropout if self.training and state is None else 0.0
        if context is not None and rate:
            context_mask = drop_context(context, context_mask, rate)
        position_bias = None if isinstance(self.position_bias, NoPositionBias) else self.position_bias
        side = SideInputs(
            AttentionBias(inputs.rules, position_bias, layout, inputs.keys, inputs.window, state),
            context_bias(context, layout, context_mask, state) if self.has_cross else None,
            self.rotations.cos_sin(layout, dtype),
            context,
            state,
            collector,
            layout,
            token_ids=inputs.token_ids,
            condition=inputs.condition,
        )
        if state is not None and self.derives_keys:
            every = state.layout(0, layout.end, layout.positions.device)
            side.cached_cos_sin = self.rotations.cos_sin(every, dtype)
        if memory is not None:
            self.rotations.refuse_memory()
            hiddens = dict(zip(self.recurrent_steps, memory.hiddens))
            side.memory = SegmentMemory(hiddens, self.rotations.cos_sin(memory.layout, dtype))
        return side

    @as_forward
    def init_state(
        self,
        batch: int,
        length: int,
        *,
        window: int | None = None,
        seq_start_pos: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> DecodeState:
        """Return a preallocated decode state for `batch` rows of at most `length` tokens."""
        if not self.can_cache:
            raise ValueError(
                "only causal layers can be decoded step by step; this stack attends to later tokens"
            )
        for name, size in (("batch", batch), ("length", length), ("window", 1 if window is None else window)):
            check_size(name, size)
        refuse_mixer_arguments(self, {"window": window})
        first = None if seq_start_pos is None else check_starts("seq_start_pos", seq_start_pos, batch)
        device, dtype = device or home_of(self)[0], dtype or home_of(self)[1]
        with torch.no_grad():
            table = self.position_bias.decode_table(length + 1, device)
        state = DecodeState(batch, length, window, first, self.cache_signature, table)
        init_caches(state, self.steps, dtype, device)
        return state


class Encoder(AttentionLayers):
    """Bidirectional self-attention: every token attends to all tokens."""

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**fixed_flags(flags, "Encoder", causal=False))


class Decoder(AttentionLayers):
    """Causal self-attention: a token attends to itself and to earlier tokens."""

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**fixed_flags(flags, "Decoder", causal=True))


class PrefixDecoder(AttentionLayers):
    """Causal after a prefix that every token attends to (prefix LM, arXiv:1910.10683, section 3.2.1).

    Windows (`attn_max_attend_past`, `window`) also mask prefix tokens that are too far back.
    """

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**fixed_flags(flags, "PrefixDecoder", causal=False))

    def time_rule(self, prefix: Tensor | None) -> MaskRule | None:
        return Causal() if prefix is None else PrefixLM(prefix)


class CrossAttender(AttentionLayers):
    """Cross-attention and feedforward sublayers, without self-attention."""

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**fixed_flags(flags, "CrossAttender", only_cross=True))

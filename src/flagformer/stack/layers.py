"""AttentionLayers, the one core: a stack of sublayers configured by flags; and its named forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from flagformer.attention.cores import Core
from flagformer.flags import CATALOGUE, Finding, FlagError, Gathered, resolve
from flagformer.flags.typed import Flags
from flagformer.flow import Causal, DecodeState, Dims, Explicit, Layout, Mask, Prefix, Rule, SideInputs, Tape
from flagformer.ops.by_distance import LONG
from flagformer.ops.identity import identity
from flagformer.stack.assemble import build_sublayers
from flagformer.stack.explain import explain_stack
from flagformer.stack.inputs import (
    check_attention_mask,
    check_context,
    check_padding,
    check_size,
    check_starts,
    check_tensor,
    check_window,
)
from flagformer.stack.session import open_session
from flagformer.stack.sublayer import Step, Sublayer
from flagformer.stack.vision import own_terms, see_context, see_self


class AttentionLayers(nn.Module):
    """A stack of attention and feedforward sublayers: [B, T, D] -> [B, T, D].

    Args:
        **flags: see `docs/flags.md`; `dim` and `depth` are required. Any slot also takes a `Spec`, a class
            or a module under the slot's name.

    Raises:
        FlagError: for unknown names, values that cannot be, and flags that do not go together: all at once.
    """

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__()
        resolved = resolve(flags, CATALOGUE)
        self.resolved = resolved
        self.dims: Dims = self._one("dims").build()
        gathered = Gathered()
        self.rotation = gathered.attempt(lambda: self._one("rotation").build(self.dims))
        self.position_bias = gathered.attempt(lambda: self._one("position_bias").build(self.dims))
        self.residual = self._one("residual").build(self.dims, len(resolved.modules))
        self.executor = self._one("executor").build()
        placement, norm = self._one("placement").build(), self._one("norm")
        self.sublayers = build_sublayers(
            resolved,
            self.dims,
            lambda: norm.build(self.dims.dim),
            placement,
            self.rotation,
            self.residual,
            gathered,
        )
        self._one("start").build()(self.sublayers)
        self.final_norm: Step = norm.build(self.dims.dim) if placement.final else identity
        kinds = [sublayer.kind for sublayer in self.sublayers]
        self.has_cross = "c" in kinds
        # how many seats self- and cross-attention put in front, each number once
        self.seat_counts = {
            kind: sorted({s.fn.seat_count for s in self.sublayers if s.kind == kind}) for kind in ("a", "c")
        }
        own = [s.fn for s in self.sublayers if s.kind == "a"]
        cores = [fn.core for fn in own]
        # cores that read no pairs need none to be made
        self.sights = sorted({fn.seat_count for fn in own if getattr(fn.core, "reads_pairs", True)})
        self.reads_terms = any(getattr(core, "reads_terms", False) for core in cores)
        self.session_shape = tuple(
            ("f", 0, 0) if s.kind == "f" else (s.kind, s.fn.source.projection.groups, self.dims.dim_head)
            for s in self.steps
        )
        self._refuse_idle_context()
        self._refuse_uneven_carry()

    def _one(self, slot: str) -> Any:
        return self.resolved.one(slot)

    def _refuse_idle_context(self) -> None:
        if self.dims.dim_context is not None and not self.has_cross:
            text = "`cross_attn_dim_context` has no effect here, because this model has no cross-attention"
            raise FlagError([Finding("cross_attn_dim_context", text + "; set `cross_attend=True` too")])

    def _refuse_uneven_carry(self) -> None:
        for kind, flag in (("a", "residual_attn"), ("c", "cross_residual_attn")):
            carries = any(s.kind == kind and s.fn.core.carries for s in self.sublayers)
            if carries and len(self.seat_counts[kind]) > 1:
                text = (
                    f"`{flag}` and `attn_num_mem_kv` cannot be combined here, because layers with different"
                )
                raise FlagError([Finding(flag, f"{text} numbers of keys cannot add up their scores")])

    @property
    def flags(self) -> dict[str, Any]:
        """The flags that build this stack again."""
        return dict(self.resolved.flags)

    @property
    def dim(self) -> int:
        return self.dims.dim

    @property
    def causal(self) -> bool:
        return self.dims.causal

    @property
    def is_relative(self) -> bool:
        """Whether a rotation or a position bias tells positions apart."""
        return any(
            self._one(slot).name not in ("NoRotation", "NoBias") for slot in ("rotation", "position_bias")
        )

    @property
    def can_cache(self) -> bool:
        """Whether it can be decoded step by step: later tokens never change what earlier ones gave.

        A PrefixDecoder can, with its prefix in the first block.
        """
        return self.time_rule(None) is not None

    @property
    def steps(self) -> list[Sublayer]:
        """The sublayers in the order in which they run; a tied one appears at each of its steps."""
        sublayers = list(self.sublayers)
        return [sublayers[index] for index in self.resolved.plan.order]

    def explain(self) -> str:
        """Slots, fillers, the kernel of each attention with its reason, and what the executor keeps."""
        return explain_stack(self)

    def time_rule(self, prefix: Tensor | None) -> Rule | None:
        """Which keys the order of time allows; None: all of them."""
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
        attn_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        prefix_attn_len: Tensor | None = None,
        layout: Layout | None = None,
        window: int | None = None,
        state: DecodeState | None = None,
        tape: Tape | None = None,
    ) -> Tensor:
        """Runs the stack.

        Args:
            x: [B, T, D].
            mask: [B, T] bool, True for real tokens.
            attn_mask: [T, S], [H, T, S], [B, T, S] or [B, H, T, S] bool, True where self-attention may look.
            context: [B, S, D_context] for cross-attention. While decoding it is read once, with the prompt.
            context_mask: [B, S] bool, True for real tokens.
            seq_start_pos: [B] the place of each left-padded row's first real token; it has position 0.
            prefix_attn_len: [B] or [1], PrefixDecoder only: how many first real tokens every query sees;
                while decoding only with the first block, which must hold them.
            layout: positions, padding and segments, when the caller has made them already.
            window: a query sees at most this many of the last tokens.
            state: a decoding session: x continues what it holds, and it takes in x.
            tape: collects auxiliary losses and the tensors it asks for.

        Returns:
            [B, T, D], after the final norm.

        Raises:
            ValueError: naming the argument, what it was and what it must be.
        """
        batch, length = self._check_x(x, state)
        if layout is None:
            layout = self._layout(x, mask, seq_start_pos, state)
        if window is not None:
            check_window(window, self.time_rule(None) is not None, state is not None)
        check_context(
            context,
            context_mask,
            self.has_cross,
            state is not None and state.context_layout is not None,
            self.dims.dim_context or self.dims.dim,
            batch,
        )
        if state is not None and prefix_attn_len is not None:
            state.read_prefix(prefix_attn_len, length)
        tape = Tape() if tape is None else tape
        rules = self._mask(prefix_attn_len, attn_mask, batch, length, state)
        side = SideInputs(
            see_self(
                self.position_bias,
                self.sights,
                rules,
                layout,
                window,
                state,
                self._reads_distances(x, tape),
            ),
            see_context(context, self.seat_counts["c"], layout, context_mask, state),
            self.rotation.angles(layout, x.dtype),
            context,
            state,
            tape,
            layout,
            self.time_rule(prefix_attn_len) is None,
            terms=own_terms(self.position_bias, rules, layout, window, state) if self.reads_terms else None,
        )
        h = self.executor.run(self.steps, self.residual, self.residual.open(x), side)
        out = self.residual.close(h, self.final_norm)
        if state is not None:
            state.length += length
        return out

    def _mask(
        self,
        prefix: Tensor | None,
        attn_mask: Tensor | None,
        batch: int,
        length: int,
        state: DecodeState | None,
    ) -> Mask:
        """What the order of time and the user's own mask allow."""
        rule = self.time_rule(prefix)
        rules = Mask() if rule is None else Mask((rule,))
        if attn_mask is None:
            return rules
        if not self.seat_counts["a"]:
            raise ValueError("`attn_mask` is for self-attention, but these layers have none")
        keys = length if state is None else state.length + length
        given = check_attention_mask(attn_mask, batch, self.dims.heads, length, keys)
        return rules & Explicit(given if state is None else given[..., state.oldest() :])

    def _reads_distances(self, x: Tensor, tape: Tape) -> bool:
        """Whether all of self-attention takes a table of distances, and it pays (maps are made densely)."""
        if x.shape[1] < LONG or tape.wants("attn.weights"):
            return False
        cores = [sublayer.fn.core for sublayer in self.sublayers if sublayer.kind == "a"]
        return all(isinstance(core, Core) and core.reads_distances(x.device) for core in cores)

    def _check_x(self, x: Tensor, state: DecodeState | None) -> tuple[int, int]:
        check_tensor("x", x)
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"`x` must have shape [B, T, {self.dim}], but has {list(x.shape)}")
        if state is not None and state.made_for != self.session_shape:
            raise ValueError("`state` must come from `init_state` of this model, but other layers made it")
        if state is not None and (x.shape[0] != state.batch or state.length + x.shape[1] > state.capacity):
            raise ValueError(
                f"`state` holds {state.length} of {state.capacity} tokens of {state.batch} rows; "
                f"`x` with {x.shape[1]} more of {x.shape[0]} rows does not fit: "
                "init_state(batch, length) sizes it"
            )
        return x.shape[0], x.shape[1]

    def _layout(
        self, x: Tensor, mask: Tensor | None, starts: Tensor | None, state: DecodeState | None
    ) -> Layout:
        batch, length = x.shape[:2]
        if state is not None:
            return state.layout(state.length, length, x.device)
        layout = Layout.plain(length, x.device)
        if starts is not None:
            layout = Layout.left_padded(check_starts("seq_start_pos", starts, batch), length)
        return layout if mask is None else layout.hide(check_padding("mask", mask, batch, length))

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
        """A preallocated decoding session for `batch` rows of at most `length` tokens."""
        if not self.can_cache:
            raise ValueError("only causal layers can be decoded step by step; this stack sees later tokens")
        for name, size in (("batch", batch), ("length", length), ("window", 1 if window is None else window)):
            check_size(name, size)
        first = None if seq_start_pos is None else check_starts("seq_start_pos", seq_start_pos, batch)
        weight = next(self.parameters())
        device, dtype = device or weight.device, dtype or weight.dtype
        state = DecodeState(batch, length, window, first, made_for=self.session_shape)
        with torch.no_grad():
            state.bias_row = self.position_bias.row(length, device)
        open_session(state, self.steps, dtype, device)
        return state


class Encoder(AttentionLayers):
    """Every token sees every other."""

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**_fixed(flags, "Encoder", causal=False))


class Decoder(AttentionLayers):
    """No token sees a later one."""

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**_fixed(flags, "Decoder", causal=True))


class PrefixDecoder(AttentionLayers):
    """Causal behind a prefix that every token sees (prefix LM, arXiv:1910.10683, section 3.2.1)."""

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**_fixed(flags, "PrefixDecoder", causal=False))

    def time_rule(self, prefix: Tensor | None) -> Rule | None:
        return Causal() if prefix is None else Prefix(prefix)


class CrossAttender(AttentionLayers):
    """Cross-attention and feedforward only."""

    def __init__(self, **flags: Unpack[Flags]) -> None:
        super().__init__(**_fixed(flags, "CrossAttender", only_cross=True))


def _fixed(flags: Any, owner: str, **fixed: bool) -> Any:
    findings = [
        Finding(name, f"`{name}` is fixed by {owner} as {value}; leave it out, or use AttentionLayers")
        for name, value in fixed.items()
        if name in flags
    ]
    if findings:
        raise FlagError(findings)
    return {**flags, **fixed}

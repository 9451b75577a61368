"""Mask and position bias of a forward, in the form that each kernel reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from flagformer.flow import bias_views, flex
from flagformer.flow.bias_views import DenseBias, PositionScores, PositionSource, PositionTable
from flagformer.flow.decode_state import DecodeState
from flagformer.flow.flex import FlexBias
from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import (
    Causal,
    Chunks,
    MaskRule,
    Padding,
    PrefixLM,
    Segments,
    Window,
    narrowest,
)
from flagformer.flow.relative import RelativeBias, relative_bias
from flagformer.flow.varlen import VarLen, varlen_of

T = TypeVar("T")


class AttentionBias:
    """Mask rules and position bias of one forward; each form is computed on first use and cached.

    A forward has one for self-attention and one for cross-attention; `narrowed` returns that of a sublayer.
    Equal narrowings are one object.

    Checkpointed and reversible layers compute sublayers twice, with the same tensors: kernels compute their
    forms in `prepare`, before the executor runs, and `mapped` replaces the tensors of these forms.

    Args:
        rules: a pair is allowed if all rules allow it; rules for padding and segments are added.
        position_bias: added to the scores; None: no bias.
        q, kv: layouts of queries and keys, without prefix keys.
        window: a query attends to at most this many of the last tokens; None: all.
        state: the decode state; its cache holds at least the keys within the window.

    Attributes:
        num_prefix_kv: number of keys before `kv` without a position: always allowed, without a bias.
        mask_self: for shared QK: a query attends to itself only if it has no other key.
        heads: the heads to which it applies; None: all.
        sublayer_rules: further rules of a sublayer's window.
        is_bidirectional: whether tokens may attend to later ones.
    """

    # not a dataclass: FSDP2 passes copies of dataclasses to sharded modules, and forms are cached here

    def __init__(
        self,
        rules: Sequence[MaskRule],
        position_bias: PositionScores | None,
        q: Layout,
        kv: Layout,
        window: int | None = None,
        state: DecodeState | None = None,
    ) -> None:
        self.given, self.position_bias, self.q, self.kv, self.state = rules, position_bias, q, kv, state
        self.window = window if state is None else state.window
        self.num_prefix_kv, self.mask_self = 0, False
        self.heads: slice | None = None
        self.sublayer_rules: tuple[MaskRule, ...] = ()
        # `whole`: for all heads; `base`: for all heads, without prefix keys and `mask_self`
        self.root = self.base = self.whole = self
        self.narrowings: dict[tuple[Any, ...], AttentionBias] = {}
        self.memo: dict[str, Any] = {}
        # outside of the memo, which `mapped` copies for each reversible sublayer
        self._rules: tuple[MaskRule, ...] | None = None
        self._plain: bool | None = None

    def narrowed(
        self,
        window: int | None = None,
        num_prefix_kv: int = 0,
        mask_self: bool = False,
        heads: slice | None = None,
        rules: tuple[MaskRule, ...] = (),
    ) -> AttentionBias:
        """Return the bias for some heads, with prefix keys, within this window and that of the forward.

        Args:
            rules: the `sublayer_rules`; sublayers with equal ones share one bias.
        """
        heads = self.heads if heads is None else heads
        ends = () if heads is None else (heads.start, heads.stop)
        width = self.root.window if window is None else narrowest(window, self.root.window)
        key = (width, num_prefix_kv, mask_self, rules, *ends)
        if key not in self.root.narrowings:
            self.root.narrowings[key] = self.root._narrow(key[0], num_prefix_kv, mask_self, heads, rules)
        return self.root.narrowings[key]

    def of_heads(self, heads: slice) -> AttentionBias:
        """Return the bias of some of the heads."""
        return self.narrowed(self.window, self.num_prefix_kv, self.mask_self, heads, self.sublayer_rules)

    def _narrow(
        self,
        window: int | None,
        num_prefix_kv: int,
        mask_self: bool,
        heads: slice | None,
        rules: tuple[MaskRule, ...],
    ) -> AttentionBias:
        one = _copied(self)
        one.memo, one.narrowings, one.window, one._rules, one._plain = {}, {}, window, None, None
        one.num_prefix_kv, one.mask_self, one.heads = num_prefix_kv, mask_self, heads
        one.sublayer_rules = rules
        one.whole = one if heads is None else self.narrowed(window, num_prefix_kv, mask_self, rules=rules)
        plain = not num_prefix_kv and not mask_self
        one.base = self.narrowed(window, rules=rules) if not plain else one if heads is None else one.whole
        if one.base is not one:
            one.kv = one.base.kv
        elif self.state is not None:
            first = self.state.window_start(window)
            one.kv = self.state.layout(first, self.q.end - first, self.q.positions.device)
        return one

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return the cached value of this name, computed by `make` on first use."""
        if name not in self.memo:
            self.memo[name] = make()
        found: T = self.memo[name]
        return found

    def mapped(self, change: Callable[[Any], Any]) -> AttentionBias:
        """Return a copy with other tensors: `change` maps rules, layouts and all cached forms."""
        copies: dict[int, AttentionBias] = {}

        def copied(one: AttentionBias) -> AttentionBias:
            if id(one) not in copies:
                copies[id(one)] = new = _copied(one)
                new.given, new.q, new.kv = (change(x) for x in (one.given, one.q, one.kv))
                new._rules = None
                new.memo = {name: x if name == "block_mask" else change(x) for name, x in one.memo.items()}
                new.root, new.base, new.whole = copied(one.root), copied(one.base), copied(one.whole)
                new.narrowings = {key: copied(child) for key, child in one.narrowings.items()}
            return copies[id(one)]

        return copied(self)

    @property
    def is_bidirectional(self) -> bool:
        return not any(isinstance(rule, (Causal, PrefixLM)) for rule in self.given)

    @property
    def rules(self) -> tuple[MaskRule, ...]:
        """All rules of these layouts and this window, without those that allow every pair."""
        if self._rules is None:
            self._rules = self._all_rules()
        return self._rules

    def _all_rules(self) -> tuple[MaskRule, ...]:
        rules: list[MaskRule] = [*self.given, *self.sublayer_rules, Padding(), Segments()]
        # for a single query, keys outside the window are sliced off the cache
        trimmed = self.state is not None and self.q.length == 1 and self.kv.always_visible is None
        if self.window is not None and not trimmed and not self._in_chunks(self.window):
            rules.append(Window(self.window - 1))
        return tuple(rule for rule in rules if not rule.implied(self.q, self.kv))

    def _in_chunks(self, width: int) -> bool:
        """Whether chunks mask every key that a window of this width masks."""
        return any(isinstance(rule, Chunks) and rule.size <= width for rule in self.sublayer_rules)

    @property
    def offset(self) -> int:
        """Number of keys before the first query."""
        return self.q.start - self.kv.start

    @property
    def is_plain_causal(self) -> bool:
        """Whether causality is the only rule and query i has key i: the fast path of every kernel."""
        if self._plain is None:
            self._plain = self._is_plain_causal()
        return self._plain

    def _is_plain_causal(self) -> bool:
        aligned = self.q.start == self.kv.start and self.q.length == self.kv.length and self.q.length > 1
        if not aligned or self.mask_self or self.position_bias is not None:
            return False
        rules = self.rules
        return len(rules) == 1 and isinstance(rules[0], Causal)

    @property
    def learned(self) -> bool:
        """Whether the bias of `dense` required a gradient when that form was computed."""
        return self.base.once("learned", lambda: _has_gradient(self.position_scores()))

    def position_scores(self) -> Tensor | None:
        """Return the position bias [1 or B, H, T, S] of all heads and keys; None: no bias."""
        owner = self.root if self.state is None else self.base  # while decoding, keys depend on the window
        return owner.once("scores", self._position_scores)

    def _position_scores(self) -> Tensor | None:
        if self.position_bias is None:
            return None
        if self.state is not None and self.q.length == 1:
            return self.state.last_query_bias(self.kv.length)
        return self.position_bias.between(self.q, self.kv)

    def relative_embedding(self) -> Tensor | None:
        """Return the vectors [N, D] of the position bias that scores read; None: it has none."""
        make = getattr(self.position_bias, "embedding", None)
        found: Tensor | None = None if make is None else self.root.once("relative_embedding", make)
        return found

    def dense(self) -> DenseBias:
        """Mask and bias as tensors."""
        found: DenseBias | None = self.memo.get("dense")
        return self.once("dense", self._dense) if found is None else found

    def _dense(self) -> DenseBias:
        if self.heads is not None:
            return self.whole.dense().of_heads(self.heads)
        allowed = self.base.once("allowed", lambda: bias_views.allowed_pairs(self.rules, self.q, self.kv))
        if self.mask_self:
            keys = torch.arange(self.kv.length, device=self.q.positions.device)
            is_self = keys[self.offset :, None] == keys
            allowed = bias_views.without_self(allowed, is_self[None, None], self.num_prefix_kv)
        masks_all = any(rule.may_mask_all for rule in self.rules)
        self.learned  # noqa: B018  computed with the form
        self.relative_embedding()
        return bias_views.dense_bias(allowed, self.position_scores(), self.num_prefix_kv, masks_all)

    def gather(
        self, q_idx: Tensor, kv_idx: Tensor, only_earlier: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return mask and bias of N blocks of pairs, without prefix keys and `mask_self`.

        Args:
            q_idx: [1 or B, N, 1 or h, g, 1] long, query indices.
            kv_idx: [1 or B, N, 1 or h, 1, s] long, key indices.
            only_earlier: no key is later than its query, so that `Causal` allows all pairs.

        Returns:
            [1 or B, N, 1 or h, g, s] bool, None if all pairs are allowed; and biases of h heads, None for no
            bias.
        """
        heads = slice(None) if self.heads is None else self.heads
        rules = [rule for rule in self.rules if not (only_earlier and isinstance(rule, Causal))]
        allowed = bias_views.allowed_at(rules, self.q, self.kv, q_idx, kv_idx, heads)
        return allowed, self.position_source().at(q_idx, kv_idx, self.offset, heads)

    def position_source(self) -> PositionSource:
        """Return the tensor from which the position bias of any pair is read; computed once."""
        return self.base.once("position_source", self.base._position_source)

    def _position_source(self) -> PositionSource:
        state, q, kv = self.state, self.q, self.kv
        if self.position_bias is None:
            return PositionSource()
        if state is not None and q.length == 1 and state.relative_bias is not None:
            return PositionSource(PositionTable(state.relative_bias, state.capacity, -1))
        if q.contiguous_positions and kv.contiguous_positions:
            causal = any(isinstance(rule, Causal) for rule in self.given)
            nearest = 0 if causal else q.start - (kv.end - 1)
            row = self.position_bias.relative_table(nearest, q.end - 1 - kv.start, q.positions.device)
            if row is not None:
                return PositionSource(PositionTable(row, -nearest), learned=row.requires_grad)
        scores = self.position_scores()
        return PositionSource(None, scores, _has_gradient(scores))

    def relative(self) -> RelativeBias | None:
        """Return a bias table by distance; None for short rows and where it is not exact or not faster."""
        if self.num_prefix_kv or self.mask_self:
            return None
        found = self.base.once("relative", self.base._relative)
        return found if found is None or self.heads is None else found.of_heads(self.heads)

    def _relative(self) -> RelativeBias | None:
        return relative_bias(self.rules, self.position_bias, self.q, self.kv, self.is_plain_causal)

    def varlen(self) -> VarLen | None:
        """Return the form of varlen kernels; None if a rule or a bias does not support it."""
        if self.position_bias is not None or self.num_prefix_kv or self.mask_self:
            return None
        return self.base.once("varlen", lambda: varlen_of(self.rules, self.q, self.kv))

    def flex(self) -> FlexBias:
        """Return the arguments of FlexAttention; `score_mod` is not cached, as `mapped` cannot change it."""
        return FlexBias(flex.score_mod(self), self.once("block_mask", lambda: flex.block_mask(self)))


class BlockBias(AttentionBias):
    """Mask and bias of blocks of queries and keys that a block-sparse core has gathered."""

    def __init__(self, dense: DenseBias, num_prefix_kv: int, learned: bool) -> None:
        empty = Layout(torch.empty(1, 0))
        super().__init__((), None, empty, empty)
        self.num_prefix_kv, self.memo = num_prefix_kv, {"dense": dense, "learned": learned}

    @property
    def is_plain_causal(self) -> bool:
        return False

    def relative(self) -> None:
        return None


def _copied(bias: AttentionBias) -> AttentionBias:
    """Return a shallow copy; `copy.copy` takes as long as the rest of a narrowing."""
    one = object.__new__(type(bias))
    one.__dict__.update(bias.__dict__)
    return one


def _has_gradient(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad

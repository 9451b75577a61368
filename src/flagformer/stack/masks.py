"""Who may see whom in this forward: the pairs of self- and cross-attention, made once for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from flagformer.flow import (
    BiasRow,
    Causal,
    DecodeState,
    Distances,
    Layout,
    Mask,
    Padding,
    Pairs,
    Reach,
    Segments,
    Sight,
    Terms,
    Window,
    narrowest,
)
from flagformer.ops.lengths import hides
from flagformer.position import PositionBias
from flagformer.position.none import NoPositionBias
from flagformer.stack.inputs import check_padding


def self_attention_pairs(
    position_bias: PositionBias,
    sights: Sequence[Sight],
    mask: Mask,
    queries: Layout,
    window: int | None,
    state: DecodeState | None,
    by_distance: bool,
    keys: Layout,
) -> dict[Sight, Pairs]:
    """Tokens against tokens, and against those that a state holds, by the seats in front and the window.

    `window` narrows the windows of all sublayers. `by_distance`: every kernel takes a table in place of a
    mask and a bias; seats do not. `keys`: the tokens themselves, with memories in front.
    """
    table = by_distance and not any(seats for seats, _ in sights)
    if state is not None:
        window = state.window
    widths = {own: narrowest(own, window) for _, own in sights}
    biases: dict[int | None, Tensor | None] = {}
    looks = {
        width: _build_pairs(position_bias, mask, queries, keys, width, state, table, biases)
        for width in dict.fromkeys(widths.values())
    }
    # windows that another one narrows to the same width share their pairs
    pairs = {(seats, widths[own]): looks[widths[own]].pairs(seats) for seats, own in sights}
    return {(seats, own): pairs[seats, widths[own]] for seats, own in sights}


class _PairsBuilder(NamedTuple):
    """What queries see of keys within one window, whatever is seated in front."""

    mask: Mask
    queries: Layout
    keys: Layout
    bias: Tensor | None = None
    distances: Distances | None = None

    def pairs(self, seats: int) -> Pairs:
        if self.distances is not None:
            return Pairs(distances=self.distances)
        return Pairs.of(self.mask, self.queries, self.keys, self.bias, seats)


def _build_pairs(
    position_bias: PositionBias,
    mask: Mask,
    queries: Layout,
    keys: Layout,
    width: int | None,
    state: DecodeState | None,
    table: bool,
    biases: dict[int | None, Tensor | None],
) -> _PairsBuilder:
    """`biases`: those made already; a state's keys depend on the window, by which they are known."""
    mask, keys = _own_keys(mask, queries, keys, width, state)
    distances = _distances(position_bias, mask, queries, keys) if table else None
    if distances is not None:
        return _PairsBuilder(mask, queries, keys, distances=distances)
    of = None if state is None else width
    if of not in biases:
        newest = state if queries.length == 1 else None
        biases[of] = (
            position_bias.between(queries, keys) if newest is None else newest.last_query_bias(keys.length)
        )
    return _PairsBuilder(mask, queries, keys, biases[of])


def _own_keys(
    mask: Mask, queries: Layout, keys: Layout, width: int | None, state: DecodeState | None
) -> tuple[Mask, Layout]:
    """All rules within one window, and the keys: those given, or those that a state holds."""
    hidden = width
    if state is not None:
        first = state.window_start(width)
        keys = state.layout(first, queries.end - first, queries.positions.device)
        # one query behind a sliced cache needs no rule: what it may not see is not there
        hidden = width if queries.length > 1 or keys.always_visible is not None else None
    if keys.valid is not None:
        mask &= Padding()
    if keys.segment_ids is not None:
        mask &= Segments()
    if hidden is not None and hides(hidden, keys.length):
        mask &= Window(hidden)
    return mask, keys


def self_attention_terms(
    position_bias: PositionBias,
    windows: Sequence[int | None],
    mask: Mask,
    queries: Layout,
    window: int | None,
    state: DecodeState | None,
    keys: Layout,
) -> dict[int | None, Terms]:
    """What `self_attention_pairs` says, to be asked pair by pair, by the windows of sublayers."""
    if state is not None:
        window = state.window
    return {own: _terms(position_bias, mask, queries, keys, narrowest(own, window), state) for own in windows}


def _terms(
    position_bias: PositionBias,
    mask: Mask,
    queries: Layout,
    keys: Layout,
    width: int | None,
    state: DecodeState | None,
) -> Terms:
    mask, keys = _own_keys(mask, queries, keys, width, state)
    if state is not None and queries.length == 1 and state.relative_bias is not None:
        return Terms(mask, queries, keys, BiasRow(state.relative_bias, state.capacity, -1))
    if isinstance(position_bias, NoPositionBias):
        return Terms(mask, queries, keys)
    # behind a causal mask no later key is met
    nearest = 0 if Causal() in mask.rules else queries.start - (keys.end - 1)
    row = None
    if queries.contiguous_positions and keys.contiguous_positions:
        farthest = queries.end - 1 - keys.start
        row = position_bias.relative_table(nearest, farthest, queries.positions.device)
    if row is None:
        bias = position_bias.between(queries, keys)
        return Terms(mask, queries, keys, bias=bias, learned=bias is not None and bias.requires_grad)
    return Terms(mask, queries, keys, BiasRow(row, -nearest), learned=row.requires_grad)


def _distances(position_bias: PositionBias, mask: Mask, queries: Layout, keys: Layout) -> Distances | None:
    """The table that says who meets whom and the bias; None where there is none or it saves nothing."""
    reach = Reach.of(mask, queries, keys)
    if reach is None:
        return None
    if isinstance(position_bias, NoPositionBias) and (
        mask.is_plain_causal or not (reach.causal or reach.window)
    ):
        return None
    biases = position_bias.relative_table(reach.nearest, reach.farthest, queries.positions.device)
    return None if biases is None else Distances.of(biases, position_bias.saturation_distance, reach)


def cross_attention_pairs(
    context: Tensor | None,
    seat_counts: Sequence[int],
    queries: Layout,
    padding: Tensor | None,
    state: DecodeState | None,
) -> dict[Sight, Pairs]:
    """Every token against every real token of the context, by the number of seats in front."""
    if not seat_counts:
        return {}
    keys = _context_layout(context, padding, state)
    if state is not None:
        state.context_layout = keys
    mask = Mask() if keys.valid is None else Mask((Padding(),))
    return {(count, None): Pairs.of(mask, queries, keys, None, count) for count in seat_counts}


def _context_layout(context: Tensor | None, padding: Tensor | None, state: DecodeState | None) -> Layout:
    if state is not None and state.context_layout is not None:
        return state.context_layout  # a session reads its context once
    assert context is not None
    batch, length = context.shape[:2]
    plain = Layout.arange(length, context.device)
    if padding is None:
        return plain
    return Layout(plain.positions, check_padding("context_mask", padding, batch, length))

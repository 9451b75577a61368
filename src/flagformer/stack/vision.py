"""Who may see whom in this forward: the pairs of self- and cross-attention, made once for all layers."""

from __future__ import annotations

from collections.abc import Sequence

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
    Terms,
    Window,
)
from flagformer.position import PositionBias
from flagformer.position.none import NoBias
from flagformer.stack.inputs import check_padding


def see_self(
    position_bias: PositionBias,
    seat_counts: Sequence[int],
    mask: Mask,
    queries: Layout,
    window: int | None,
    state: DecodeState | None,
    by_distance: bool,
) -> dict[int, Pairs]:
    """Tokens against tokens, and against those that a state holds, by the number of seats in front.

    `by_distance`: every kernel takes a table in place of a mask and a bias; seats do not.
    """
    if not seat_counts:
        return {}
    mask, keys = _own_keys(mask, queries, window, state)
    if by_distance and not any(seat_counts):
        distances = _distances(position_bias, mask, queries, keys)
        if distances is not None:
            return {0: Pairs(distances=distances)}
    if state is not None and queries.length == 1:
        bias = state.newest_bias(keys.length)
    else:
        bias = position_bias(queries, keys)
    return {count: Pairs.of(mask, queries, keys, bias, count) for count in seat_counts}


def own_terms(
    position_bias: PositionBias, mask: Mask, queries: Layout, window: int | None, state: DecodeState | None
) -> Terms:
    """The same, to be asked pair by pair."""
    mask, keys = _own_keys(mask, queries, window, state)
    if state is not None and queries.length == 1 and state.bias_row is not None:
        return Terms(mask, queries, keys, BiasRow(state.bias_row, state.capacity - 1, -1))
    if isinstance(position_bias, NoBias):
        return Terms(mask, queries, keys)
    # behind a causal mask no later key is met
    nearest = 0 if Causal() in mask.rules else queries.start - (keys.end - 1)
    row = None
    if queries.by_place and keys.by_place:
        farthest = queries.end - 1 - keys.start
        row = position_bias.by_distance(nearest, farthest, queries.positions.device)
    if row is None:
        return Terms(mask, queries, keys, bias=position_bias(queries, keys))
    return Terms(mask, queries, keys, BiasRow(row, -nearest))


def _own_keys(
    mask: Mask, queries: Layout, window: int | None, state: DecodeState | None
) -> tuple[Mask, Layout]:
    """All rules, and the keys of a model's own tokens: of this forward, and those that a state holds."""
    keys = queries
    if state is not None:
        first = state.oldest()
        keys = state.layout(first, queries.end - first, queries.positions.device)
        # one query behind a sliced cache needs no rule: what it may not see is not there
        window = state.window if queries.length > 1 else None
    if keys.padding is not None:
        mask &= Padding()
    if keys.segments is not None:
        mask &= Segments()
    if window is not None and window < keys.length:
        mask &= Window(window)
    return mask, keys


def _distances(position_bias: PositionBias, mask: Mask, queries: Layout, keys: Layout) -> Distances | None:
    """The table that says who meets whom and the bias; None where there is none or it saves nothing."""
    reach = Reach.of(mask, queries, keys)
    if reach is None:
        return None
    if isinstance(position_bias, NoBias) and (mask.only_causal or not (reach.causal or reach.window)):
        return None
    biases = position_bias.by_distance(reach.nearest, reach.farthest, queries.positions.device)
    return None if biases is None else Distances.of(biases, position_bias.same_from, reach)


def see_context(
    context: Tensor | None,
    seat_counts: Sequence[int],
    queries: Layout,
    padding: Tensor | None,
    state: DecodeState | None,
) -> dict[int, Pairs]:
    """Every token against every real token of the context, by the number of seats in front."""
    if not seat_counts:
        return {}
    keys = _context_layout(context, padding, state)
    if state is not None:
        state.context_layout = keys
    mask = Mask() if keys.padding is None else Mask((Padding(),))
    return {count: Pairs.of(mask, queries, keys, None, count) for count in seat_counts}


def _context_layout(context: Tensor | None, padding: Tensor | None, state: DecodeState | None) -> Layout:
    if state is not None and state.context_layout is not None:
        return state.context_layout  # a session reads its context once
    assert context is not None
    batch, length = context.shape[:2]
    plain = Layout.plain(length, context.device)
    if padding is None:
        return plain
    return Layout(plain.positions, check_padding("context_mask", padding, batch, length))

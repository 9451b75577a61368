"""The slots of a model: what may be filled, how often, and the contract in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """A place in the model.

    Attributes:
        scope: where it is filled: once per "model" (the wrapper), once per "stack" (the layers),
            or in every "attention", "feedforward" or "branch" (any sublayer).
        many: whether several fillers may share it.
        read_by: slots of the stack: the kind of sublayer that alone reads it; empty: every kind.
    """

    name: str
    scope: str
    contract: str
    many: bool = False
    read_by: str = ""


def _slots(*slots: Slot) -> dict[str, Slot]:
    return {slot.name: slot for slot in slots}


SLOTS = _slots(
    Slot("wrapper", "model", "ids [B,T] -> logits [B,T,V]"),
    Slot("absolute", "model", "positions -> vectors added to the token embedding"),
    Slot("memory", "model", "learned tokens woven between those of a row", read_by="a"),
    Slot("head", "model", "(x, embedding) -> logits"),
    Slot("recurrence", "model", "(memories, streams) -> memories for the next segment", read_by="a"),
    Slot("slots", "model", "(slots, segment) -> slots for the next segment, which cross-attention reads"),
    Slot("dims", "stack", "the sizes that components share"),
    Slot("plan", "stack", "flags -> the order of sublayers"),
    Slot("norm", "stack", "x -> x"),
    Slot("norm_position", "stack", "where a sublayer is normed: before, after, both"),
    Slot(
        "residual",
        "stack",
        "open(x) -> h; read(h, i) -> x; write(h, out, i) -> h; change(h, norm) -> h; close(h, norm) -> x",
    ),
    Slot("init", "stack", "sublayers -> what their last weights start at", many=True),
    Slot("hints", "stack", "what the layers ask of the wrapper around them"),
    Slot("context_dropout", "stack", "(context, mask) -> which of its tokens cross-attention reads"),
    Slot("executor", "stack", "(sublayers, residual, x, side) -> x"),
    Slot("rotation", "stack", "q or k, with angles -> the same, turned by its own positions", read_by="a"),
    Slot(
        "position_bias",
        "stack",
        "(q_positions, k_positions) -> [1 or B, H, T, S] added to the scores",
        read_by="a",
    ),
    Slot("values", "attention", "what holds of the values -> the same: width, shared, turned", many=True),
    Slot("projection", "attention", "x -> q, k, v by heads"),
    Slot("qk_norm", "attention", "(q, k) -> (q, k), and the scale of their product"),
    Slot("window", "attention", "how many earlier tokens a query of self-attention sees"),
    Slot("prefix_kv", "attention", "kv -> kv, by seating keys in front that every query sees", many=True),
    Slot("score", "attention", "(scores, q, k, pairs) -> scores, before the bias and the mask", many=True),
    Slot("normalizer", "attention", "scores -> attention weights"),
    Slot("weight_mod", "attention", "weights -> weights, before the values are gathered", many=True),
    Slot("gate", "attention", "(out, x) -> out, after the values are gathered", many=True),
    Slot("output", "attention", "heads [B, T, H * V] -> [B, T, D]"),
    Slot("core", "attention", "(q, kv, side) -> out: which pairs are considered"),
    Slot("local", "attention", "which heads see the tokens around them only, in place of the core"),
    Slot("kernel", "attention", "(q, k, v, pairs) -> out: the arithmetic of attention"),
    Slot("feedforward", "feedforward", "(x, side) -> x"),
    Slot("activation", "feedforward", "x -> x, pointwise"),
    Slot("input_mixer", "branch", "(x, side) -> x, on what a sublayer reads, behind the norm"),
    Slot("branch", "branch", "out -> out, on what a sublayer adds to the stream", many=True),
)

LAYER_SCOPES = frozenset({"stack", "attention", "feedforward", "branch"})
MODEL_SCOPES = LAYER_SCOPES | {"model"}

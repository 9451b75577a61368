"""The slots of a model: their scope, how many components they take, and their contract in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """A slot of the model, which components fill.

    Attributes:
        scope: filled once per "model" (the wrapper), once per "stack" (the layers), or in every "attention",
            "mixer", "feedforward" or "branch" (any sublayer).
        many: whether it takes several components.
        read_by: for slots of the stack: the only kind of sublayer that uses it; empty: all kinds.
    """

    name: str
    scope: str
    contract: str
    many: bool = False
    read_by: str = ""

    @property
    def has_place(self) -> bool:
        """Whether its components can have a `Place`: those of sublayers, and the norms."""
        return self.scope in PER_LAYER or self.name == "norm"

    @property
    def is_open(self) -> bool:
        """Whether users fill it by its name: all slots but `wrapper`, the model itself."""
        return self.name != "wrapper"


def _slots(*slots: Slot) -> dict[str, Slot]:
    return {slot.name: slot for slot in slots}


SLOTS = _slots(
    Slot("wrapper", "model", "ids [B,T] -> logits [B,T,V]"),
    Slot("token_scale", "model", "x -> x, on the token embedding, before positions are added"),
    Slot("absolute", "model", "positions -> vectors added to the token embedding"),
    Slot("embedding_norm", "model", "x -> x, on the sum of all embeddings"),
    Slot("memory", "model", "learned tokens in front of a row or interleaved with its tokens", read_by="a"),
    Slot("layer_mix", "model", "(x, hidden states of all steps) -> x, before the head"),
    Slot("head", "model", "(x, embedding) -> logits"),
    Slot("recurrence", "model", "(mems, hidden states) -> mems for the next segment", read_by="a"),
    Slot("slots", "model", "(memory slots, segment) -> memory slots for the next segment"),
    Slot("dims", "stack", "the sizes and settings that the parts of the stack share"),
    Slot("plan", "stack", "flags -> the order of sublayers"),
    Slot("norm", "stack", "x -> x"),
    Slot("norm_position", "stack", "position of the norms: before a sublayer, after it, or both"),
    Slot(
        "residual",
        "stack",
        "open(x) -> h; read(h, i) -> x; write(h, out, i) -> h; apply_norm(h, norm) -> h; close(h, norm) -> x",
    ),
    Slot("init", "stack", "(sublayers) -> initial weights of the last projection of each", many=True),
    Slot("executor", "stack", "(sublayers, residual, x, side) -> x"),
    Slot(
        "position_bias",
        "stack",
        "(q_positions, k_positions) -> [1 or B, H, T, S] added to the scores",
        read_by="a",
    ),
    Slot("values", "attention", "options of the values: width, shared with the keys, rotated", many=True),
    Slot("projection", "attention", "x -> q, k, v, split into heads"),
    Slot(
        "value_mod",
        "attention",
        "(v, x, side) -> v, values of self-attention before they are cached",
        many=True,
    ),
    Slot("qk_norm", "attention", "(q, k) -> normalized (q, k), and the scale of their product"),
    Slot("rotation", "attention", "(q or k, cos and sin) -> q or k, rotated by its positions"),
    Slot("window", "attention", "the tokens around it that a query of self-attention attends to"),
    Slot("prefix_kv", "attention", "kv -> kv with prefix keys and values for every query", many=True),
    Slot("score", "attention", "(scores, q, k, bias) -> scores, before the bias and the mask", many=True),
    Slot(
        "score_bias",
        "attention",
        "(x, side) -> s, a number of each token and head; scores of self-attention get s_q - s_k",
        many=True,
    ),
    Slot("normalizer", "attention", "scores -> attention weights"),
    Slot("weight_mod", "attention", "weights -> weights, before they multiply the values", many=True),
    Slot("gate", "attention", "(out, x) -> out, before the output projection", many=True),
    Slot("output", "attention", "heads [B, T, H * V] -> [B, T, D]"),
    Slot("core", "attention", "(q, kv, side) -> out; chooses the query-key pairs to compute"),
    Slot("local", "attention", "number of heads with local attention in place of the core"),
    Slot("kernel", "attention", "(q, k, v, bias) -> out: the implementation of attention"),
    Slot("sequence_mixer", "mixer", "(x, side) -> x, from a state of fixed size that each token changes"),
    Slot("feedforward", "feedforward", "(x, side) -> x"),
    Slot("activation", "feedforward", "x -> x, pointwise"),
    Slot("input_mixer", "branch", "(x, side) -> x, on the input of a sublayer, after the norm"),
    Slot("branch", "branch", "out -> out, on the output of a sublayer, before the residual sum", many=True),
)

# Scopes whose slots and flags take one value, or one for each sublayer.
PER_LAYER = frozenset({"attention", "mixer", "feedforward", "branch"})
LAYER_SCOPES = PER_LAYER | {"stack"}
MODEL_SCOPES = LAYER_SCOPES | {"model"}


def open_slots(scopes: Iterable[str]) -> tuple[Slot, ...]:
    """Return the slots of these scopes that users fill by name."""
    wanted = frozenset(scopes)
    return tuple(slot for slot in SLOTS.values() if slot.scope in wanted and slot.is_open)

"""Records that pass through a model with the activations: sizes, layouts, masks, keys, outputs, state."""

from flagformer.flow.collector import OutputCollector
from flagformer.flow.constant import Constant
from flagformer.flow.decode_state import (
    CrossAttentionCache,
    DecodeState,
    KVCache,
    LayerCache,
    TokenShiftCache,
)
from flagformer.flow.dims import Dims
from flagformer.flow.distances import Distances, Reach
from flagformer.flow.flatten import flatten, unflatten
from flagformer.flow.interleave import (
    InsertionPattern,
    Interleaving,
    interleave_packed,
    interleave_padded,
    interleave_unpadded,
)
from flagformer.flow.interleaved_state import InterleavedDecodeState
from flagformer.flow.key_values import KeyValues, Sight
from flagformer.flow.layout import Layout
from flagformer.flow.mask import (
    Causal,
    DenseMask,
    Mask,
    MaskRule,
    Padding,
    Prefix,
    Segments,
    Window,
    narrowest,
)
from flagformer.flow.outputs import Outputs
from flagformer.flow.pairs import Pairs
from flagformer.flow.qk_indices import QKIndices
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.flow.side import Carry, SideInputs
from flagformer.flow.terms import BiasRow, Terms

__all__ = [
    "BiasRow",
    "Carry",
    "Causal",
    "Constant",
    "CrossAttentionCache",
    "DecodeState",
    "DenseMask",
    "Dims",
    "Distances",
    "InsertionPattern",
    "InterleavedDecodeState",
    "Interleaving",
    "KVCache",
    "KeyValues",
    "LayerCache",
    "Layout",
    "Mask",
    "MaskRule",
    "OutputCollector",
    "Outputs",
    "Padding",
    "Pairs",
    "Prefix",
    "QKIndices",
    "Reach",
    "RecurrentState",
    "Segments",
    "SideInputs",
    "Sight",
    "Terms",
    "TokenShiftCache",
    "Window",
    "flatten",
    "interleave_packed",
    "interleave_padded",
    "interleave_unpadded",
    "narrowest",
    "unflatten",
]  # fmt: skip

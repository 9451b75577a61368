"""Records that pass through a model with the activations: sizes, layouts, masks, keys, outputs, state."""

from flagformer.flow.attention_bias import AttentionBias, BlockBias
from flagformer.flow.attention_caches import CrossAttentionCache, KVCache, TokenShiftCache
from flagformer.flow.bias_views import DenseBias
from flagformer.flow.collector import OutputCollector
from flagformer.flow.constant import Constant
from flagformer.flow.decode_state import DecodeState, TruncatedCache
from flagformer.flow.dims import Dims
from flagformer.flow.flatten import flatten, unflatten
from flagformer.flow.interleave import (
    InsertionPattern,
    Interleaving,
    interleave_packed,
    interleave_padded,
    interleave_unpadded,
)
from flagformer.flow.interleaved_state import InterleavedDecodeState
from flagformer.flow.key_values import CacheEntry, KeyValues
from flagformer.flow.layer_cache import ContextCache, LayerCache, Positions
from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import (
    Causal,
    Chunks,
    DenseMask,
    MaskRule,
    Padding,
    PrefixLM,
    Segments,
    UserMaskMod,
    Window,
    narrowest,
)
from flagformer.flow.outputs import Outputs
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.flow.relative import RelativeBias, RelativeRange
from flagformer.flow.side import Carry, SegmentMemory, SideInputs
from flagformer.flow.state_record import StateMark, StateRecord
from flagformer.flow.token_bias import TokenBias
from flagformer.flow.varlen import VarLen

__all__ = [
    "AttentionBias",
    "BlockBias",
    "CacheEntry",
    "Carry",
    "Causal",
    "Chunks",
    "Constant",
    "ContextCache",
    "CrossAttentionCache",
    "DecodeState",
    "DenseBias",
    "DenseMask",
    "Dims",
    "InsertionPattern",
    "InterleavedDecodeState",
    "Interleaving",
    "KVCache",
    "KeyValues",
    "LayerCache",
    "Layout",
    "MaskRule",
    "OutputCollector",
    "Outputs",
    "Padding",
    "Positions",
    "PrefixLM",
    "RecurrentState",
    "RelativeBias",
    "RelativeRange",
    "SegmentMemory",
    "Segments",
    "SideInputs",
    "StateMark",
    "StateRecord",
    "TokenBias",
    "TokenShiftCache",
    "TruncatedCache",
    "UserMaskMod",
    "VarLen",
    "Window",
    "flatten",
    "interleave_packed",
    "interleave_padded",
    "interleave_unpadded",
    "narrowest",
    "unflatten",
]  # fmt: skip

"""What flows through a model beside activations: sizes, standing, masks, keys, side results, state."""

from flagformer.flow.constant import Constant
from flagformer.flow.decode_state import ContextCache, DecodeState, FeatureCache, KVCache, SessionState
from flagformer.flow.dims import Dims
from flagformer.flow.distances import Distances, Reach
from flagformer.flow.key_values import KeyValues, Sight
from flagformer.flow.layout import Layout
from flagformer.flow.lift import fill, lift
from flagformer.flow.mask import Causal, Explicit, Mask, Padding, Prefix, Rule, Segments, Window, narrowest
from flagformer.flow.memories import Memories
from flagformer.flow.outputs import Outputs
from flagformer.flow.pairs import Pairs
from flagformer.flow.side import Carry, SideInputs
from flagformer.flow.spots import Spots
from flagformer.flow.tape import Tape
from flagformer.flow.terms import BiasRow, Terms
from flagformer.flow.weave import Pattern, Weave, weave_packed, weave_plain, weave_rows
from flagformer.flow.woven_state import WovenState

__all__ = [
    "BiasRow", "Carry", "Causal", "Constant", "ContextCache", "DecodeState", "Dims", "Distances", "Explicit",
    "FeatureCache", "KVCache", "KeyValues", "Layout", "Mask", "Memories", "Outputs", "Padding", "Pairs",
    "Pattern", "Prefix", "Reach", "Rule", "Segments", "SessionState", "SideInputs", "Sight", "Spots", "Tape",
    "Terms", "Weave", "Window", "WovenState", "fill", "lift", "narrowest", "weave_packed", "weave_plain",
    "weave_rows",
]  # fmt: skip

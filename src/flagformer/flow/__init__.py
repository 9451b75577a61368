"""What flows through a model beside activations: sizes, standing, masks, keys, side results, state."""

from flagformer.flow.constant import Constant
from flagformer.flow.decode_state import ContextCache, DecodeState, FeatureCache, KVCache, SessionState
from flagformer.flow.dims import Dims
from flagformer.flow.distances import Distances, Reach
from flagformer.flow.key_values import KeyValues
from flagformer.flow.layout import Layout
from flagformer.flow.mask import Causal, Explicit, Mask, Padding, Prefix, Rule, Segments, Window
from flagformer.flow.outputs import Outputs
from flagformer.flow.pairs import Pairs
from flagformer.flow.side import SideInputs
from flagformer.flow.spots import Spots
from flagformer.flow.tape import Tape
from flagformer.flow.terms import BiasRow, Terms

__all__ = [
    "BiasRow", "Causal", "Constant", "ContextCache", "DecodeState", "Dims", "Distances", "Explicit",
    "FeatureCache", "KVCache", "KeyValues", "Layout", "Mask", "Outputs", "Padding", "Pairs", "Prefix",
    "Reach", "Rule", "Segments", "SessionState", "SideInputs", "Spots", "Tape", "Terms", "Window",
]  # fmt: skip

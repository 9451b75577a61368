"""What flows through a model beside activations: sizes, standing, masks, keys, side results, state."""

from flagformer.flow.constant import Constant
from flagformer.flow.decode_state import ContextCache, DecodeState, FeatureCache, KVCache, SessionState
from flagformer.flow.dims import Dims
from flagformer.flow.distances import Distances, Reach
from flagformer.flow.key_values import KeyValues, Sight
from flagformer.flow.layout import Layout
from flagformer.flow.mask import Causal, Explicit, Mask, Padding, Prefix, Rule, Segments, Window, narrowest
from flagformer.flow.memories import Memories
from flagformer.flow.outputs import Outputs
from flagformer.flow.pairs import Pairs
from flagformer.flow.side import SideInputs
from flagformer.flow.tape import Tape

__all__ = [
    "Causal", "Constant", "ContextCache", "DecodeState", "Dims", "Distances", "Explicit", "FeatureCache",
    "KVCache", "KeyValues", "Layout", "Mask", "Memories", "Outputs", "Padding", "Pairs", "Prefix", "Reach",
    "Rule", "Segments", "SessionState", "SideInputs", "Sight", "Tape", "Window", "narrowest",
]  # fmt: skip

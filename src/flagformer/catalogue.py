"""Every component, in the order of application: the one place that knows what exists."""

from __future__ import annotations

from flagformer.attention.cores.carried import CarriedCrossScores, CarriedScores
from flagformer.attention.cores.dense import Dense as DenseCore
from flagformer.attention.cores.local import LocalHeads, NoLocal
from flagformer.attention.cores.routed_context import RoutedContext
from flagformer.attention.cores.routing import Routing
from flagformer.attention.gates.head_scale import HeadScale
from flagformer.attention.gates.tensor_product import TensorProduct
from flagformer.attention.gates.values import HeadGate, ValueGate
from flagformer.attention.kernels.einsum import Einsum
from flagformer.attention.kernels.sdpa import SDPA, FusedBias
from flagformer.attention.key_values.seats import LearnedMemory, NullKV
from flagformer.attention.output.project import AttentionOnAttention, Project
from flagformer.attention.past.recent import RecentPast, WholePast
from flagformer.attention.projection.heads import ContextSharedQK, Grouped, MultiHead, MultiQuery, SharedQK
from flagformer.attention.qk_norm.norms import RMS, Cosine, Plain
from flagformer.attention.values.shared import SharedKV
from flagformer.attention.values.turned import TurnedValues
from flagformer.attention.values.width import ValueWidth
from flagformer.branch.scale import LayerScale
from flagformer.branch.stochastic_depth import StochasticDepth
from flagformer.embedding.memory import MemoryTokens, NoMemory
from flagformer.entry.shift import ShiftTokens
from flagformer.entry.straight import Straight
from flagformer.feedforward.activation import GELU, ReLUSquared, Swish
from flagformer.feedforward.dense import GLU, Dense
from flagformer.feedforward.moe import MixtureOfExperts
from flagformer.feedforward.pkm import ProductKeys
from flagformer.flags import CATALOGUE
from flagformer.flow import Dims
from flagformer.head.heads import LinearHead, NoHead, TiedHead
from flagformer.memory.recurrence import NoRecurrence, SegmentRecurrence
from flagformer.memory.slots import MemorySlots, NoSlots
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.norm.simple_rmsnorm import SimpleRMSNorm
from flagformer.position.absolute import Learned, NoAbsolute, Sinusoidal
from flagformer.position.alibi import ALiBi
from flagformer.position.dynamic import Dynamic
from flagformer.position.none import NoBias, NoRotation
from flagformer.position.rotary import Rotary
from flagformer.position.t5 import T5
from flagformer.position.xpos import XPos
from flagformer.residual.additive import Additive, Scaled
from flagformer.residual.gru import GRUGate
from flagformer.residual.resi_dual import ResiDual
from flagformer.score.learned_sink import LearnedSink
from flagformer.score.softclamp import SoftClamp
from flagformer.score.softmax import Softmax
from flagformer.score.sparse_topk import SparseTopK
from flagformer.score.talking_heads import TalkingScores, TalkingWeights
from flagformer.stack.context_tokens import AllTokens, SomeTokens
from flagformer.stack.executor.checkpointed import Checkpointed
from flagformer.stack.executor.reversible import Reversible
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.placement import DualNorm, PostNorm, PreNorm, SandwichNorm
from flagformer.stack.plan import Plan
from flagformer.stack.start import (
    DepthScaled,
    ZeroAttention,
    ZeroBranches,
    ZeroCrossAttention,
    ZeroFeedForward,
)
from flagformer.stack.wishes import Wishes
from flagformer.wrappers.transformer import TransformerWrapper

CATALOGUE.fill(
    [
        TransformerWrapper, Learned, Sinusoidal, NoAbsolute, NoMemory, MemoryTokens,
        Dims, Plan, Wishes,
        LayerNorm, RMSNorm, ScaleNorm, SimpleRMSNorm,
        PreNorm, PostNorm, SandwichNorm, DualNorm,
        Additive, Scaled, GRUGate, ResiDual,
        DepthScaled, ZeroBranches, ZeroAttention, ZeroCrossAttention, ZeroFeedForward,
        AllTokens, SomeTokens,
        Sequential, Checkpointed, Reversible,
        NoRotation, Rotary, XPos,
        NoBias, ALiBi, T5, Dynamic,
        ValueWidth, SharedKV, TurnedValues,
        MultiHead, Grouped, MultiQuery, SharedQK, ContextSharedQK,
        Plain, Cosine, RMS,
        WholePast, RecentPast,
        LearnedMemory, NullKV,
        TalkingScores, SoftClamp,
        Softmax, SparseTopK, LearnedSink,
        TalkingWeights,
        TensorProduct, HeadScale, HeadGate, ValueGate,
        Project, AttentionOnAttention,
        DenseCore, CarriedScores, CarriedCrossScores, Routing, RoutedContext,
        NoLocal, LocalHeads,
        # the fastest kernel first: the first that serves every filled slot is taken
        SDPA, FusedBias, Einsum,
        Dense, GLU, ProductKeys, MixtureOfExperts,
        GELU, Swish, ReLUSquared,
        Straight, ShiftTokens,
        LayerScale, StochasticDepth,
        LinearHead, TiedHead, NoHead,
        NoRecurrence, SegmentRecurrence, NoSlots, MemorySlots,
    ]
)  # fmt: skip

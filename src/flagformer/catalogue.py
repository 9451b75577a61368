"""The catalogue: every component, in the order of application. Add a new component here."""

from __future__ import annotations

from flagformer.attention.cores.dense import Dense as DenseCore
from flagformer.attention.cores.local import LocalHeads, NoLocal
from flagformer.attention.cores.residual_attention import ResidualCrossScores, ResidualScores
from flagformer.attention.cores.routed_context import RoutedContext
from flagformer.attention.cores.routing import Routing
from flagformer.attention.gates.head_scale import HeadScale
from flagformer.attention.gates.tensor_product import TensorProduct
from flagformer.attention.gates.values import HeadGate, ValueGate
from flagformer.attention.kernels.eager import Eager
from flagformer.attention.kernels.sdpa import SDPA, SDPATrainableBias
from flagformer.attention.output.project import AttentionOnAttention, Project
from flagformer.attention.prefix_kv.learned import LearnedMemory, NullKV
from flagformer.attention.projection.heads import (
    ContextSharedQK,
    GroupedQuery,
    MultiHead,
    MultiQuery,
    SharedQK,
)
from flagformer.attention.projection.latent import MultiHeadLatent
from flagformer.attention.qk_norm.layernorm import LayerQKNorm
from flagformer.attention.qk_norm.norms import L2QKNorm, NoQKNorm, RMSQKNorm
from flagformer.attention.score_bias.forget_gate import ForgetGate
from flagformer.attention.value_mods.embedding import ValueEmbedding
from flagformer.attention.values.rotary import RotaryValues
from flagformer.attention.values.shared import SharedKV
from flagformer.attention.values.width import ValueWidth
from flagformer.attention.window.chunks import ChunkedWindow
from flagformer.attention.window.sliding_window import FullContext, SlidingWindow
from flagformer.branch.adaptive_gate import AdaptiveGate
from flagformer.branch.scale import BranchScale, LayerScale
from flagformer.branch.stochastic_depth import StochasticDepth
from flagformer.embedding.memory import MemoryTokens, NoMemory
from flagformer.embedding.norms import EmbeddingLayerNorm, NoEmbeddingNorm
from flagformer.embedding.scales import FixedTokenScale, NoTokenScale
from flagformer.feedforward.activation import GELU, NamedActivation, ReLUSquared, Swish
from flagformer.feedforward.dense import GLU, Dense
from flagformer.feedforward.moe import MixtureOfExperts
from flagformer.feedforward.pkm import ProductKeys
from flagformer.feedforward.xielu import XIELU
from flagformer.flags import CATALOGUE
from flagformer.flow import Dims
from flagformer.head.heads import LinearHead, NoHead, TiedHead
from flagformer.head.layer_mix import NoLayerMix, ScalarMix
from flagformer.input_mixer.identity import Identity
from flagformer.input_mixer.token_shift import TokenShift
from flagformer.memory.recurrence import NoRecurrence, SegmentRecurrence
from flagformer.memory.slots import MemorySlots, NoSlots
from flagformer.mixer.gated_deltanet import GatedDeltaNet
from flagformer.mixer.mamba2 import Mamba2
from flagformer.mixer.rglru import RGLRU
from flagformer.mixer.short_convolution import ShortConvolution
from flagformer.norm.adaptive import AdaptiveLayerNorm, AdaptiveRMSNorm
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.norm.simple_rmsnorm import SimpleRMSNorm
from flagformer.position.absolute import Learned, NoAbsolute, Sinusoidal
from flagformer.position.alibi import ALiBi
from flagformer.position.disentangled import Disentangled
from flagformer.position.dynamic import Dynamic
from flagformer.position.none import NoPositionBias, NoRotation
from flagformer.position.rotary import Rotary
from flagformer.position.t5 import T5
from flagformer.position.temperature import LogTemperature
from flagformer.position.xpos import XPos
from flagformer.residual.additive import Additive, Scaled
from flagformer.residual.gru import GRUGate
from flagformer.residual.resi_dual import ResiDual
from flagformer.score.learned_sink import LearnedSink
from flagformer.score.softclamp import SoftClamp
from flagformer.score.softmax import Softmax
from flagformer.score.softpick import Softpick
from flagformer.score.sparse_topk import SparseTopK
from flagformer.score.talking_heads import TalkingScores, TalkingWeights
from flagformer.stack.executor.checkpointed import Checkpointed
from flagformer.stack.executor.reversible import Reversible
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.placement import BranchNorm, DualNorm, PostNorm, PreNorm, SandwichNorm
from flagformer.stack.plan import Plan
from flagformer.stack.weight_init import (
    DepthScaledInit,
    ZeroAttentionInit,
    ZeroBranchesInit,
    ZeroCrossAttentionInit,
    ZeroFeedForwardInit,
)
from flagformer.wrappers.transformer import TransformerWrapper

CATALOGUE.fill(
    [
        TransformerWrapper, NoTokenScale, FixedTokenScale, Learned, Sinusoidal, NoAbsolute,
        NoEmbeddingNorm, EmbeddingLayerNorm, NoMemory, MemoryTokens,
        Dims, Plan,
        LayerNorm, RMSNorm, ScaleNorm, SimpleRMSNorm, AdaptiveLayerNorm, AdaptiveRMSNorm,
        PreNorm, PostNorm, SandwichNorm, BranchNorm, DualNorm,
        Additive, Scaled, GRUGate, ResiDual,
        DepthScaledInit, ZeroFeedForwardInit, ZeroCrossAttentionInit, ZeroAttentionInit, ZeroBranchesInit,
        Sequential, Checkpointed, Reversible,
        NoRotation, Rotary, XPos, LogTemperature,
        NoPositionBias, ALiBi, T5, Dynamic, Disentangled,
        ValueWidth, SharedKV, RotaryValues,
        MultiHead, GroupedQuery, MultiQuery, MultiHeadLatent, SharedQK, ContextSharedQK,
        ValueEmbedding,
        NoQKNorm, L2QKNorm, RMSQKNorm, LayerQKNorm,
        FullContext, SlidingWindow, ChunkedWindow,
        LearnedMemory, NullKV,
        TalkingScores, SoftClamp, ForgetGate,
        Softmax, SparseTopK, LearnedSink, Softpick,
        TalkingWeights,
        TensorProduct, HeadScale, HeadGate, ValueGate,
        Project, AttentionOnAttention,
        DenseCore, ResidualScores, ResidualCrossScores, Routing, RoutedContext,
        NoLocal, LocalHeads,
        # the fastest kernel first: the first that supports the components of all slots is used
        SDPA, SDPATrainableBias, Eager,
        GatedDeltaNet, Mamba2, ShortConvolution, RGLRU,
        Dense, GLU, ProductKeys, MixtureOfExperts,
        GELU, Swish, ReLUSquared, XIELU, NamedActivation,
        Identity, TokenShift,
        LayerScale, BranchScale, AdaptiveGate, StochasticDepth,
        NoLayerMix, ScalarMix, LinearHead, TiedHead, NoHead,
        NoRecurrence, SegmentRecurrence, NoSlots, MemorySlots,
    ]
)  # fmt: skip

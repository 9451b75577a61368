"""Every component, in the order of application: the one place that knows what exists."""

from __future__ import annotations

from flagformer.attention.cores.dense import Dense as DenseCore
from flagformer.attention.kernels.einsum import Einsum
from flagformer.attention.kernels.sdpa import SDPA, FusedBias
from flagformer.attention.key_values.seats import LearnedMemory, NullKV
from flagformer.attention.projection.heads import Grouped, MultiHead, MultiQuery
from flagformer.attention.qk_norm.norms import RMS, Cosine, Plain
from flagformer.branch.scale import LayerScale
from flagformer.branch.stochastic_depth import StochasticDepth
from flagformer.feedforward.activation import GELU, ReLUSquared, Swish
from flagformer.feedforward.dense import GLU, Dense
from flagformer.flags import CATALOGUE
from flagformer.flow import Dims
from flagformer.head.heads import LinearHead, TiedHead
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.position.absolute import Learned, NoAbsolute, Sinusoidal
from flagformer.position.alibi import ALiBi
from flagformer.position.dynamic import Dynamic
from flagformer.position.none import NoBias, NoRotation
from flagformer.position.rotary import Rotary
from flagformer.position.t5 import T5
from flagformer.residual.additive import Additive
from flagformer.score.softmax import Softmax
from flagformer.stack.executor.checkpointed import Checkpointed
from flagformer.stack.executor.sequential import Sequential
from flagformer.stack.placement import PostNorm, PreNorm, SandwichNorm
from flagformer.stack.plan import Plan
from flagformer.wrappers.transformer import TransformerWrapper

CATALOGUE.fill(
    [
        TransformerWrapper, Learned, Sinusoidal, NoAbsolute,
        Dims, Plan,
        LayerNorm, RMSNorm,
        PreNorm, PostNorm, SandwichNorm,
        Additive,
        Sequential, Checkpointed,
        NoRotation, Rotary,
        NoBias, ALiBi, T5, Dynamic,
        MultiHead, Grouped, MultiQuery,
        Plain, Cosine, RMS,
        LearnedMemory, NullKV,
        Softmax,
        DenseCore,
        # the fastest kernel first: the first that serves every filled slot is taken
        SDPA, FusedBias, Einsum,
        Dense, GLU,
        GELU, Swish, ReLUSquared,
        LayerScale, StochasticDepth,
        LinearHead, TiedHead,
    ]
)  # fmt: skip

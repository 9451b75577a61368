"""The attention sublayer (arXiv:1706.03762, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from flagformer.attention.cores import Core
from flagformer.attention.cores.fixed_windows import FixedWindows
from flagformer.attention.cores.head_split import HeadSplit
from flagformer.attention.cores.kmeans import REMINDER, KMeans
from flagformer.attention.cores.local import HeadShare, Local
from flagformer.attention.gates import Gate
from flagformer.attention.output import Output
from flagformer.attention.prefix_kv import PrefixKV
from flagformer.attention.score_bias.total import ScoreBiases
from flagformer.attention.scores import ScorePipeline
from flagformer.attention.source import CrossAttentionInputs, QKVSource, SelfAttentionInputs
from flagformer.attention.values import Values
from flagformer.attention.window import SlidingWindowSlot
from flagformer.flags import Finding, FlagError, Instance, Spec
from flagformer.flow import AttentionBias, Dims, SideInputs, TokenBias, Window
from flagformer.ops.identity import as_module
from flagformer.ops.reminder import watch
from flagformer.position import PositionBias, Rotation
from flagformer.position.none import NoRotation

Slots = Mapping[str, tuple[Spec | Instance, ...]]


class Attention(nn.Module):
    """[B, T, D] -> [B, T, D]: every token attends to the keys that the mask allows."""

    prefix_kv: Sequence[PrefixKV]  # module lists, typed by their elements
    gates: Sequence[Gate]

    def __init__(
        self,
        source: QKVSource,
        prefix_kv: Sequence[PrefixKV],
        core: Core,
        gates: Sequence[Gate],
        output: Output,
        score_biases: ScoreBiases | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        source.core_reads_heads = getattr(
            core, "reads_heads", True
        )  # a core of the user's may declare nothing
        source.absorbs = not any(getattr(part, "reads_heads", True) for part in _readers(core, prefix_kv))
        self.score_biases = score_biases
        self.prefix_kv = nn.ModuleList(prefix_kv)  # type: ignore[assignment]
        self.num_prefix_kv = sum(prefix.count for prefix in prefix_kv)  # keys without a position
        self.is_cross = source.is_cross
        masks_self = source.projection.shared_qk and not source.is_cross
        # of the attention bias: for all heads
        self.narrowing = (source.window, self.num_prefix_kv, masks_self, None, source.window_rules)
        self.core = core
        self.gates = nn.ModuleList(map(as_module, gates))  # type: ignore[assignment]
        self.to_out = output
        self._watch()

    def _watch(self) -> None:
        if any(isinstance(module, KMeans) for module in self.core.modules()):
            watch(self, REMINDER)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch()

    @property
    def window(self) -> int | None:
        """Number of last tokens a query attends to, itself included; None: all."""
        return self.source.window

    def _bias(self, side: SideInputs) -> AttentionBias:
        """Mask and position bias of this sublayer."""
        bias = side.context_bias if self.is_cross else side.bias
        assert bias is not None
        return bias.narrowed(*self.narrowing)

    def prepare(self, side: SideInputs) -> None:
        """Make the forms of mask and position bias that `forward` reads, before the executor runs."""
        prepare = getattr(self.core, "prepare", None)  # a custom core may have none
        bias = self._bias(side)
        if self.score_biases is not None:
            bias = TokenBias(bias, None)
        if prepare is None:
            bias.dense()
        else:
            prepare(bias, side)

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        q, kv = self.source(x, side)
        if self.num_prefix_kv:
            for prefix in self.prefix_kv:
                kv = prefix(kv, self.source.qk_norm.keys)
        bias = self._bias(side)
        if self.score_biases is not None:
            bias = TokenBias(bias, self.score_biases(x, side))
        out = self.core(q, kv, bias, side)
        if kv.absorbed:
            out = self.source.projection.of_absorbed(out)
        for gate in self.gates:
            out = gate(out, x)
        return self.to_out(out.transpose(1, 2).flatten(2))  # [B, H, T, V] -> [B, T, D]


def _readers(core: nn.Module, prefix_kv: Sequence[PrefixKV]) -> list[Any]:
    """The parts of an attention that are given keys and values."""
    paths = [module for module in core.modules() if isinstance(module, ScorePipeline)]
    return [core, *prefix_kv, *(mod for path in paths for mod in path.score_mods)]


def build_attention(
    slots: Slots,
    dims: Dims,
    rotation: Rotation,
    rotation_idx: int | None = None,
    relative: PositionBias | None = None,
) -> Attention:
    """Build one attention sublayer from the components of its slots.

    Args:
        rotation_idx: the index of the rotation in `side.cos_sin`; None for cross-attention.
        relative: the position bias of the stack.
    """
    cross = rotation_idx is None
    values = _values(slots, dims, rotation)
    turned = 0 if cross or rotation is None else rotation.width
    dims = replace(dims, value_width=values.width, rotary_width=turned)
    projection = slots["projection"][0].build(dims, cross, values.shared)
    qk_norm = slots["qk_norm"][0].build(dims, projection.groups)
    source: QKVSource = CrossAttentionInputs(projection, qk_norm, dims)
    score_biases = None
    if rotation_idx is not None:
        value_rotation = rotation if values.rotated else NoRotation(dims)
        window = slots["window"][0].build()
        rotations = (rotation, value_rotation, rotation_idx)
        value_mods = [filler.build(dims, projection.groups) for filler in slots["value_mod"]]
        source = SelfAttentionInputs(projection, qk_norm, dims, *rotations, window, value_mods)
        _refuse_ahead(window, dims)
        if slots["score_bias"]:
            biases = [filler.build(dims) for filler in slots["score_bias"]]
            score_biases = ScoreBiases(biases, dims.heads, window.width)
    prefix_kv = [filler.build(dims, projection.groups) for filler in slots["prefix_kv"]]
    core = _build_core(slots, dims, source, rotation, None if cross else relative)
    gates = [filler.build(dims) for filler in slots["gate"]]
    _refuse_idle_window(source, core)
    return Attention(source, prefix_kv, core, gates, slots["output"][0].build(dims), score_biases)


def _values(slots: Slots, dims: Dims, rotation: Rotation) -> Values:
    """Apply the rules of the slot `values` in order and return the resulting settings."""
    values = Values(dims.dim_head)
    for rule in slots["values"]:
        values = rule.build(dims, rotation)(values)
        if not isinstance(values, Values):
            text = f"`values` must be a rule Values -> Values, but {rule.describe()} returns {values!r}"
            raise FlagError([Finding("values", text)])
    return values


def _build_core(
    slots: Slots, dims: Dims, source: QKVSource, rotation: Rotation, relative: PositionBias | None
) -> Core:
    """Return one core, or a `HeadSplit` of two, each with its own scores and kernel."""
    cross = source.is_cross
    local: HeadShare = slots["local"][0].build(dims)
    scale = source.qk_norm.scale
    parts: list[tuple[Core, int]] = []
    for count in (local.heads, dims.heads - local.heads):
        if count:
            core_dims = replace(dims, heads=count)
            mods = [filler.build(core_dims) for filler in slots["score"]]
            if relative is not None:
                mods = [*relative.score_mods(source.projection, source.qk_norm, scale), *mods]
            mixes = [filler.build(core_dims) for filler in slots["weight_mod"]]
            path = ScorePipeline(scale, mods, slots["normalizer"][0].build(core_dims), mixes)
            kernel = slots["kernel"][0].build(path)
            if not parts and local.heads:
                core = local.core(kernel, path, core_dims, rotation)
            else:
                core = slots["core"][0].build(kernel, path, cross, core_dims)
            parts.append((core, count))
    return parts[0][0] if len(parts) == 1 else HeadSplit(parts)


def _refuse_ahead(window: SlidingWindowSlot, dims: Dims) -> None:
    """Raise FlagError for a limit of later tokens in a causal model."""
    if dims.causal and any(isinstance(rule, Window) and rule.right is not None for rule in window.rules):
        text = (
            "`attn_max_attend_ahead` and `causal=True` cannot be combined, because a causal model attends to"
        )
        text = f"{text} no later tokens; leave it out, or use an encoder (`causal=False`)"
        raise FlagError([Finding("attn_max_attend_ahead", text)])


def _refuse_idle_window(source: QKVSource, core: Core) -> None:
    """Raise FlagError for a window wider than the tokens that all heads attend to anyway."""
    if source.window is None or not isinstance(core, (Local, FixedWindows)):
        return
    limits = [source.window - 1]
    for rule in source.window_rules:
        if not isinstance(rule, Window) or rule.right is None:
            return  # it cuts elsewhere
        limits.append(rule.right)
    if core.lookaround <= min(limits):
        text = "`attn_max_attend_past` and `n_local_attn_heads` cannot be combined here, because all heads"
        text = f"{text} are local and reach {core.lookaround} tokens back; lower the first, or leave it out"
        raise FlagError([Finding("attn_max_attend_past", text)])

"""The flags of AttentionLayers as a type, for editors and type checkers.

Generated from the catalogue by `python -m flagformer.reference`; do not edit.
"""

from typing import Any, Literal, TypedDict


class Flags(TypedDict, total=False):
    """Every flag is optional here; `flagformer.FlagError` says at construction what is missing."""

    dim: int
    """model width D"""
    heads: int
    """attention heads H"""
    attn_dim_head: int
    """width K of one head"""
    causal: bool
    """no position sees a later one (fixed by Encoder and Decoder)"""
    cross_attn_dim_context: int | None
    """width of the context; None: `dim`"""
    depth: int | None
    """number of blocks"""
    cross_attend: bool
    """blocks are a-c-f: cross-attention to a context"""
    only_cross: bool
    """blocks are c-f: no self-attention"""
    macaron: bool
    """blocks are f-a-f with halved f (1906.02762)"""
    custom_layers: tuple[str, ...] | str | None
    """the sublayers one by one, of 'a', 'c', 'f'"""
    sandwich_coef: int | None
    """so many a first and f last (1911.03864)"""
    weight_tie_layers: bool
    """one block runs `depth` times (ALBERT, 1909.11942)"""
    use_rmsnorm: bool | None
    """Unit root mean square, a gain per dimension."""
    pre_norm: bool | None
    """pre_norm=False: Norm of the stream after each sublayer, as in the first transformer."""
    sandwich_norm: bool | None
    """Norm before each sublayer and of what it adds (CogView)."""
    checkpoint: Literal["sublayer"] | None
    """recompute activations in the backward, unit by unit"""
    rotary_pos_emb: bool | None
    """Turns pairs of dimensions of q and k by angles that grow with the position."""
    rotary_emb_dim: int | None
    """dims of a head that are turned; None: all"""
    rotary_interpolation_factor: float
    """divides positions (2306.15595)"""
    rotary_base_rescale_factor: float
    """multiplies the base by factor ** (R / (R - 2))"""
    alibi_pos_bias: bool | None
    """A penalty that grows with the distance, with its own slope for each head; nothing is learned."""
    alibi_num_heads: int | None
    """heads with a slope, the others get none; None: all"""
    rel_pos_bias: bool | None
    """A learned number per head and bucket of distances, shared by all layers."""
    rel_pos_num_buckets: int
    """how many buckets"""
    rel_pos_max_distance: int
    """distances from here on share the last bucket"""
    dynamic_pos_bias: bool | None
    """A perceptron maps each distance to a number per head; shared by all layers, of width D / 4."""
    dynamic_pos_bias_log_distance: bool
    """the network sees sign(d) * log(|d| + 1)"""
    dynamic_pos_bias_mlp_depth: int
    """hidden layers"""
    dynamic_pos_bias_norm: bool
    """LayerNorm in each hidden layer"""
    attn_kv_heads: int | tuple[int | None, ...] | None
    """key/value heads G, a divisor of `heads`"""
    cross_attn_kv_heads: int | tuple[int | None, ...] | None
    """key/value heads G, a divisor of `heads` (cross-attention only)"""
    attn_one_kv_head: bool | tuple[bool | None, ...] | None
    """Multi-query attention: all heads share one key and value head."""
    cross_attn_one_kv_head: bool | tuple[bool | None, ...] | None
    """Multi-query attention: all heads share one key and value head. (cross-attention only)"""
    attn_qk_norm: bool | tuple[bool | None, ...] | None
    """q and k have unit length; a fixed factor replaces K ** -0.5 (the paper learns it)."""
    cross_attn_qk_norm: bool | tuple[bool | None, ...] | None
    """q and k have unit length; a fixed factor replaces K ** -0.5 (the paper learns it). (cross-
    attention only)"""
    attn_qk_norm_scale: float | tuple[float, ...]
    """what cosines are multiplied by"""
    cross_attn_qk_norm_scale: float | tuple[float, ...]
    """what cosines are multiplied by (cross-attention only)"""
    attn_qk_rmsnorm: bool | tuple[bool | None, ...] | None
    """q and k have unit root mean square and a learned gain per head and dimension."""
    cross_attn_qk_rmsnorm: bool | tuple[bool | None, ...] | None
    """q and k have unit root mean square and a learned gain per head and dimension. (cross-attention
    only)"""
    attn_num_mem_kv: int | tuple[int, ...]
    """learned key/value pairs M per layer"""
    cross_attn_num_mem_kv: int | tuple[int, ...]
    """learned key/value pairs M per layer (cross-attention only)"""
    attn_add_zero_kv: bool | tuple[bool | None, ...] | None
    """One zero key with a zero value: a query may attend to nothing (`add_zero_attn` of torch)."""
    cross_attn_add_zero_kv: bool | tuple[bool | None, ...] | None
    """One zero key with a zero value: a query may attend to nothing (`add_zero_attn` of torch). (cross-
    attention only)"""
    attn_flash: bool | tuple[bool | None, ...] | None
    """attn_flash=True: torch.nn.functional.scaled_dot_product_attention.; attn_flash=False: softmax(q
    k^T) v in three steps; memory grows with T * S."""
    cross_attn_flash: bool | tuple[bool | None, ...] | None
    """attn_flash=True: torch.nn.functional.scaled_dot_product_attention.; attn_flash=False: softmax(q
    k^T) v in three steps; memory grows with T * S. (cross-attention only)"""
    attn_dropout: float | tuple[float, ...]
    """dropout of attention weights"""
    cross_attn_dropout: float | tuple[float, ...]
    """dropout of attention weights (cross-attention only)"""
    ff_mult: float | tuple[float, ...]
    """inner width F = int(D * mult)"""
    ff_dropout: float | tuple[float, ...]
    """dropout before the output projection"""
    ff_no_bias: bool | tuple[bool, ...]
    """no biases at all (PaLM, 2204.02311)"""
    ff_post_act_ln: bool | tuple[bool, ...]
    """LayerNorm after the activation (2110.09456)"""
    ff_glu: bool | tuple[bool | None, ...] | None
    """The inner projection has two halves: values, and gates that pass through the activation."""
    ff_swish: bool | tuple[bool | None, ...] | None
    """x * sigmoid(x), also called SiLU; with `ff_glu` this is SwiGLU."""
    ff_relu_squared: bool | tuple[bool | None, ...] | None
    """max(x, 0) ** 2 (Primer)."""
    use_layerscale: bool | tuple[bool | None, ...] | None
    """A learned gain per dimension that starts small. It follows a sandwich norm, which would undo
    it."""
    layerscale_init_value: float | tuple[float, ...]
    """what the gains start at"""
    layer_dropout: float | tuple[float, ...]
    """probability that a row skips the sublayer"""
    # a Spec, a class or a module in place of what the flags select, for any slot
    dims: Any
    plan: Any
    norm: Any
    placement: Any
    residual: Any
    executor: Any
    rotation: Any
    position_bias: Any
    attention: Any
    projection: Any
    qk_norm: Any
    key_values: Any
    score: Any
    weights: Any
    gate: Any
    core: Any
    kernel: Any
    feedforward: Any
    activation: Any
    branch: Any

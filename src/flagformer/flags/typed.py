"""The flags of AttentionLayers as a type, for editors and type checkers.

Generated from the catalogue by `python -m flagformer.lab.reference`; do not edit.
"""

from typing import Any, Literal, TypedDict

FfActivation = Literal[
    "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "mish", "tanh", "sigmoid", "identity"
]


class Flags(TypedDict, total=False):
    """Every flag is optional here; a missing one raises `flagformer.FlagError` at construction."""

    dim: int
    """model width D"""
    heads: int
    """attention heads H"""
    attn_dim_head: int
    """width K of one head"""
    causal: bool
    """causal self-attention (fixed by Encoder and Decoder)"""
    cross_attn_dim_context: int | None
    """width of the context; None: `dim`"""
    cross_attn_tokens_dropout: float
    """fraction of context tokens that all cross-attention masks in training (2202.07765)"""
    disable_abs_pos_emb: bool | None
    """no absolute positions in wrappers; None: if the layers have relative ones"""
    depth: int | None
    """number of blocks"""
    cross_attend: bool
    """blocks are a-c-f: cross-attention to a context"""
    only_cross: bool
    """blocks are c-f: no self-attention"""
    macaron: bool
    """blocks are f-a-f with halved f (1906.02762)"""
    custom_layers: tuple[str, ...] | str | None
    """the sequence of sublayers, of 'a', 'c', 'f', 'm'"""
    sandwich_coef: int | None
    """number of a first and of f last (1911.03864)"""
    par_ratio: int | None
    """sublayers per attention, f last (2009.04534)"""
    weight_tie_layers: bool
    """one block runs `depth` times (ALBERT, 1909.11942)"""
    layers_execute_order: tuple[int, ...] | None
    """index of the sublayer of each step"""
    mixer: tuple[str, ...] | str | None
    """mixers in place of self-attention, or in parallel: a name, one per layer, or a pattern such as '3
    mamba2 : 1 attention' or 'mamba2 + attention'"""
    parallel_block: bool
    """the sublayers of a block read one norm of its input; outputs are added"""
    parallel_block_own_norms: bool
    """a norm for each sublayer of a parallel block, as in GPT-NeoX"""
    norm_eps: float | None
    """added to the mean square (LayerNorm: the variance); None: 1e-5 in LayerNorm, no epsilon in
    others"""
    norm_weight: bool
    """a learned weight in each LayerNorm; False: none (OLMo 1)"""
    norm_bias: bool
    """a learned bias in each LayerNorm"""
    norm_weight_offset: float
    """added to the weight, which starts at 1 minus it (Gemma: 1)"""
    use_rmsnorm: bool | None
    """Unit root mean square, with a learned weight per dimension."""
    use_scalenorm: bool | None
    """Unit L2 norm times one learned scale, initially sqrt(D)."""
    use_simple_rmsnorm: bool | None
    """Unit root mean square, without parameters."""
    adaptive_layernorm: int
    """width C of the condition of LayerNorm"""
    adaptive_rmsnorm: int
    """width C of the condition of RMSNorm"""
    pre_norm_has_final_norm: bool
    """norm of the stream after the last sublayer"""
    pre_norm_has_first_norm: bool
    """norm of the input of the first sublayer"""
    pre_norm: bool | None
    """pre_norm=False: Norm of the stream after each sublayer, as in the original transformer."""
    sandwich_norm: bool | None
    """Norm before each sublayer and of its output (CogView)."""
    res_post_norm: bool | None
    """Norm of each sublayer's output, and none of its input (Swin V2; the reordered norm of OLMo 2)."""
    resi_dual: bool | None
    """Norm of the stream after each sublayer, and a final norm of the second stream.; A post-norm stream
    that sublayers read, plus a stream of plain sums that is added at the end."""
    scale_residual_constant: float
    """factor of the stream at each sublayer (2203.00555)"""
    scale_residual: bool | None
    """The output of each sublayer is added to the stream times a learned weight per dimension."""
    gate_residual: bool | None
    """A GRU cell per sublayer: its input is the sublayer's output, its hidden state the stream."""
    resi_dual_scale: float
    """scale of the second stream, against overflow in fp16"""
    depth_scale_residual: bool | None
    """Initialise the output projection of sublayer i with standard deviation (i * in_features) **
    -0.5."""
    ff_zero_init_output: bool | None
    """Set the output projections of feedforwards to zero."""
    cross_attn_zero_init_output: bool | None
    """Set the output projections of cross-attention to zero, to add a context to a trained model."""
    attn_zero_init_output: bool | None
    """Set the output projections of self- and cross-attention to zero."""
    zero_init_branch_output: bool | None
    """Set the output projections of all sublayers to zero, so that they initially add nothing."""
    checkpoint: Literal["sublayer", "selective"] | None
    """recompute activations in the backward: of whole sublayers, or all except expensive ones"""
    reversible: bool | None
    """Two residual streams, from which the backward recomputes all activations: none are saved."""
    reversible_exact: bool
    """round outputs to a grid, so that streams below 1024 are recovered bit by bit"""
    rotary_pos_emb: bool | tuple[bool | None, ...] | None
    """Turns pairs of dimensions of q and k by angles that grow with the position."""
    rotary_emb_dim: int | tuple[int | None, ...] | None
    """dims of a head that are rotated; None: all"""
    rotary_interpolation_factor: float | tuple[float | None, ...]
    """divides positions (2306.15595)"""
    rotary_base_rescale_factor: float | tuple[float | None, ...]
    """multiplies the base by factor ** (R / (R - 2))"""
    rotary_base: float | tuple[float | None, ...]
    """base of the frequencies, `rope_theta` elsewhere"""
    rotary_scaling: dict[str, Any] | tuple[dict[str, Any] | None, ...] | None
    """`rope_type` (linear, dynamic, llama3, yarn, longrope) and its numbers, as in Hugging Face"""
    rotary_interleaved: bool | tuple[bool | None, ...]
    """rotates the pairs (2i, 2i + 1), as GPT-J and Cohere"""
    rotary_xpos: bool | tuple[bool | None, ...] | None
    """Rotation in which a pair's product fades with the distance, fast turning pairs first."""
    rotary_xpos_scale_base: int | tuple[int | None, ...]
    """positions over which the decay is zeta"""
    attn_temperature_floor: int | tuple[int | None, ...] | None
    """tokens N of a step, from which on scores grow with the logarithm of the position (Llama 4:
    8192)"""
    attn_temperature_weight: float | tuple[float | None, ...]
    """factor w of the logarithm"""
    alibi_pos_bias: bool | None
    """A penalty that grows with the distance, with its own slope for each head; nothing is learned."""
    alibi_num_heads: int | None
    """heads with a slope, the others get none; None: all"""
    alibi_before_scale: bool
    """divides the slopes by sqrt(attn_dim_head), as Falcon"""
    rel_pos_bias: bool | None
    """A learned number per head and bucket of distances, shared by all layers."""
    rel_pos_num_buckets: int
    """how many buckets"""
    rel_pos_max_distance: int
    """distances from here on share the last bucket"""
    rel_pos_bias_scale: float | None
    """factor of the table; None: K ** 0.5 (T5: 1, with `attn_scale=1`)"""
    dynamic_pos_bias: bool | None
    """A perceptron maps each distance to a number per head; shared by all layers, of width D / 4."""
    dynamic_pos_bias_log_distance: bool
    """the network sees sign(d) * log(|d| + 1)"""
    dynamic_pos_bias_mlp_depth: int
    """hidden layers"""
    dynamic_pos_bias_norm: bool
    """LayerNorm in each hidden layer"""
    disentangled_attn: bool | None
    """A learned vector for each bucket of signed distances, shared by all layers, whose scores read
    it."""
    disentangled_attn_span: int
    """buckets of each direction"""
    disentangled_attn_max_distance: int
    """distances from here on share the last bucket; 0: each below the span has its own"""
    disentangled_attn_terms: Literal["both", "c2p", "p2c"]
    """content to position (c2p), position to content (p2c), or both"""
    disentangled_attn_norm: bool
    """LayerNorm of the relative embeddings"""
    disentangled_attn_norm_eps: float
    """epsilon of that norm"""
    attn_value_dim_head: int | tuple[int | None, ...] | None
    """width V of a value head; None: `attn_dim_head`"""
    cross_attn_value_dim_head: int | tuple[int | None, ...] | None
    """width V of a value head; None: `attn_dim_head` (cross-attention only)"""
    attn_shared_kv: bool | tuple[bool | None, ...] | None
    """The keys, before their norm and rotation, are the values."""
    cross_attn_shared_kv: bool | tuple[bool | None, ...] | None
    """The keys, before their norm and rotation, are the values. (cross-attention only)"""
    attn_rotary_embed_values: bool | tuple[bool | None, ...] | None
    """Rotates values by position, as keys: outputs of heads then depend on absolute positions."""
    attn_bias: bool | tuple[bool | None, ...]
    """biases in all projections of attention"""
    cross_attn_bias: bool | tuple[bool | None, ...]
    """biases in all projections of attention (cross-attention only)"""
    attn_qkv_bias: bool | tuple[bool | None, ...] | None
    """biases in the projections to q, k and v; None: as `attn_bias`"""
    cross_attn_qkv_bias: bool | tuple[bool | None, ...] | None
    """biases in the projections to q, k and v; None: as `attn_bias` (cross-attention only)"""
    attn_clip_qkv: float | tuple[float | None, ...] | None
    """queries, keys and values are clamped to +-this number after their projection; None: no limit"""
    cross_attn_clip_qkv: float | tuple[float | None, ...] | None
    """queries, keys and values are clamped to +-this number after their projection; None: no limit
    (cross-attention only)"""
    attn_k_bias: bool | tuple[bool | None, ...]
    """biases of keys, where queries and values have them; a softmax cancels them (Whisper: none)"""
    cross_attn_k_bias: bool | tuple[bool | None, ...]
    """biases of keys, where queries and values have them; a softmax cancels them (Whisper: none) (cross-
    attention only)"""
    attn_kv_heads: int | tuple[int | None, ...] | None
    """key/value heads G, a divisor of `heads`"""
    cross_attn_kv_heads: int | tuple[int | None, ...] | None
    """key/value heads G, a divisor of `heads` (cross-attention only)"""
    attn_one_kv_head: bool | tuple[bool | None, ...] | None
    """Multi-query attention: all heads share one key and value head."""
    cross_attn_one_kv_head: bool | tuple[bool | None, ...] | None
    """Multi-query attention: all heads share one key and value head. (cross-attention only)"""
    attn_kv_rank: int | tuple[int | None, ...] | None
    """width of the latent that keys and values are expanded from"""
    cross_attn_kv_rank: int | tuple[int | None, ...] | None
    """width of the latent that keys and values are expanded from (cross-attention only)"""
    attn_q_rank: int | tuple[int | None, ...] | None
    """width of the latent of the queries; None: no latent"""
    cross_attn_q_rank: int | tuple[int | None, ...] | None
    """width of the latent of the queries; None: no latent (cross-attention only)"""
    attn_rope_dim: int | tuple[int | None, ...] | None
    """first dims R of a key that all heads share; None: the dims that the rotation turns"""
    cross_attn_rope_dim: int | tuple[int | None, ...] | None
    """first dims R of a key that all heads share; None: the dims that the rotation turns (cross-
    attention only)"""
    shared_qk: bool | tuple[bool | None, ...] | None
    """Keys are the queries, of unit length; a token sees itself only where it sees nothing else."""
    context_shared_qk: bool | tuple[bool | None, ...] | None
    """Keys of cross-attention are made of the context as queries are of the tokens, by the same
    weights."""
    attn_value_embed_tokens: int | tuple[int | None, ...]
    """rows of a table of embeddings by id that are added to the values of self-attention"""
    attn_scale: float | tuple[float | None, ...] | None
    """factor of q k^T; None: K ** -0.5"""
    cross_attn_scale: float | tuple[float | None, ...] | None
    """factor of q k^T; None: K ** -0.5 (cross-attention only)"""
    attn_qk_norm: bool | tuple[bool | None, ...] | None
    """q and k have unit length; a fixed factor replaces K ** -0.5 (the paper learns it)."""
    cross_attn_qk_norm: bool | tuple[bool | None, ...] | None
    """q and k have unit length; a fixed factor replaces K ** -0.5 (the paper learns it). (cross-
    attention only)"""
    attn_qk_norm_scale: float | tuple[float | None, ...] | None
    """factor of the cosines; None: 10"""
    cross_attn_qk_norm_scale: float | tuple[float | None, ...] | None
    """factor of the cosines; None: 10 (cross-attention only)"""
    attn_qk_norm_groups: int | tuple[int | None, ...]
    """groups of dims per head, each of unit length"""
    cross_attn_qk_norm_groups: int | tuple[int | None, ...]
    """groups of dims per head, each of unit length (cross-attention only)"""
    attn_qk_norm_dim_scale: bool | tuple[bool | None, ...]
    """a learned gain per head and dimension"""
    cross_attn_qk_norm_dim_scale: bool | tuple[bool | None, ...]
    """a learned gain per head and dimension (cross-attention only)"""
    attn_qk_rmsnorm: bool | tuple[bool | None, ...] | None
    """q and k have unit root mean square, times a learned weight."""
    cross_attn_qk_rmsnorm: bool | tuple[bool | None, ...] | None
    """q and k have unit root mean square, times a learned weight. (cross-attention only)"""
    attn_qk_rmsnorm_weight: (
        Literal["head", "shared", "none"] | tuple[Literal["head", "shared", "none"] | None, ...]
    )
    """a learned weight per head and dimension, one per dimension for all heads (Qwen3), or none"""
    cross_attn_qk_rmsnorm_weight: (
        Literal["head", "shared", "none"] | tuple[Literal["head", "shared", "none"] | None, ...]
    )
    """a learned weight per head and dimension, one per dimension for all heads (Qwen3), or none (cross-
    attention only)"""
    attn_qk_rmsnorm_all_heads: bool | tuple[bool | None, ...]
    """one mean square over all heads of a token (OLMo 2)"""
    cross_attn_qk_rmsnorm_all_heads: bool | tuple[bool | None, ...]
    """one mean square over all heads of a token (OLMo 2) (cross-attention only)"""
    attn_qk_rmsnorm_eps: float | tuple[float | None, ...] | None
    """added to the mean square; None: no epsilon"""
    cross_attn_qk_rmsnorm_eps: float | tuple[float | None, ...] | None
    """added to the mean square; None: no epsilon (cross-attention only)"""
    attn_qk_rmsnorm_weight_offset: float | tuple[float | None, ...]
    """added to the weights, which start at 1 minus it (Gemma 3: 1)"""
    cross_attn_qk_rmsnorm_weight_offset: float | tuple[float | None, ...]
    """added to the weights, which start at 1 minus it (Gemma 3: 1) (cross-attention only)"""
    rotary_before_qk_rmsnorm: bool | tuple[bool | None, ...]
    """rotates q and k before `attn_qk_rmsnorm`, in place of after it (HunYuan, Llama 4)"""
    attn_qk_layernorm: bool | tuple[bool | None, ...] | None
    """LayerNorm over the dimensions of each head of q and k, with learned weights (ViT-22B, Cohere)."""
    cross_attn_qk_layernorm: bool | tuple[bool | None, ...] | None
    """LayerNorm over the dimensions of each head of q and k, with learned weights (ViT-22B, Cohere).
    (cross-attention only)"""
    attn_qk_layernorm_weight: Literal["head", "shared"] | tuple[Literal["head", "shared"] | None, ...]
    """a learned weight per head and dimension (StableLM, Cohere), or one per dimension for all heads
    (Phi, Persimmon)"""
    cross_attn_qk_layernorm_weight: Literal["head", "shared"] | tuple[Literal["head", "shared"] | None, ...]
    """a learned weight per head and dimension (StableLM, Cohere), or one per dimension for all heads
    (Phi, Persimmon) (cross-attention only)"""
    attn_qk_layernorm_bias: bool | tuple[bool | None, ...]
    """a learned bias for each weight"""
    cross_attn_qk_layernorm_bias: bool | tuple[bool | None, ...]
    """a learned bias for each weight (cross-attention only)"""
    attn_qk_layernorm_eps: float | tuple[float | None, ...]
    """added to the variance"""
    cross_attn_qk_layernorm_eps: float | tuple[float | None, ...]
    """added to the variance (cross-attention only)"""
    attn_max_attend_past: int | tuple[int | None, ...] | None
    """number of tokens before a query to which it attends"""
    attn_max_attend_ahead: int | tuple[int | None, ...] | None
    """number of tokens after a query to which it attends; None: all"""
    attn_chunk_size: int | tuple[int | None, ...] | None
    """number of tokens of a chunk, within which a query attends"""
    attn_num_mem_kv: int | tuple[int | None, ...]
    """learned key/value pairs M per layer"""
    cross_attn_num_mem_kv: int | tuple[int | None, ...]
    """learned key/value pairs M per layer (cross-attention only)"""
    attn_add_zero_kv: bool | tuple[bool | None, ...] | None
    """One zero key with a zero value: a query may attend to nothing (`add_zero_attn` of torch)."""
    cross_attn_add_zero_kv: bool | tuple[bool | None, ...] | None
    """One zero key with a zero value: a query may attend to nothing (`add_zero_attn` of torch). (cross-
    attention only)"""
    attn_talking_heads: bool | tuple[bool | None, ...] | None
    """Scores of each head are a learned sum of the scores of all heads.; Attention weights of each head
    are a learned sum of the weights of all heads."""
    cross_attn_talking_heads: bool | tuple[bool | None, ...] | None
    """Scores of each head are a learned sum of the scores of all heads.; Attention weights of each head
    are a learned sum of the weights of all heads. (cross-attention only)"""
    attn_softclamp_logits: bool | tuple[bool | None, ...] | None
    """Soft-capped scores: cap * tanh(score / cap). The position bias is added afterwards, uncapped."""
    cross_attn_softclamp_logits: bool | tuple[bool | None, ...] | None
    """Soft-capped scores: cap * tanh(score / cap). The position bias is added afterwards, uncapped.
    (cross-attention only)"""
    attn_logit_softclamp_value: float | tuple[float | None, ...]
    """the cap of scores"""
    cross_attn_logit_softclamp_value: float | tuple[float | None, ...]
    """the cap of scores (cross-attention only)"""
    attn_forget_gate: bool | tuple[bool | None, ...] | None
    """Each head forgets earlier tokens by gates f = sigmoid(w x + b) of the tokens between key and
    query."""
    attn_sparse_topk: int | tuple[int | None, ...] | None
    """number k of keys that a query attends to"""
    cross_attn_sparse_topk: int | tuple[int | None, ...] | None
    """number k of keys that a query attends to (cross-attention only)"""
    attn_head_learned_sink: bool | tuple[bool | None, ...] | None
    """Softmax with a learned sink score per head in its denominator: weights sum to less than one."""
    cross_attn_head_learned_sink: bool | tuple[bool | None, ...] | None
    """Softmax with a learned sink score per head in its denominator: weights sum to less than one.
    (cross-attention only)"""
    attn_softpick: bool | tuple[bool | None, ...] | None
    """relu(exp(s) - 1) / (sum of |exp(s) - 1| over allowed keys + eps): a query may attend to
    nothing."""
    cross_attn_softpick: bool | tuple[bool | None, ...] | None
    """relu(exp(s) - 1) / (sum of |exp(s) - 1| over allowed keys + eps): a query may attend to nothing.
    (cross-attention only)"""
    attn_tensor_product: bool | tuple[bool | None, ...] | None
    """out + out * role, with a projection of x as the role of each token and head (2208.06061)."""
    cross_attn_tensor_product: bool | tuple[bool | None, ...] | None
    """out + out * role, with a projection of x as the role of each token and head (2208.06061). (cross-
    attention only)"""
    attn_head_scale: bool | tuple[bool | None, ...] | None
    """Multiplies the output of each head by a learned number, initially one."""
    cross_attn_head_scale: bool | tuple[bool | None, ...] | None
    """Multiplies the output of each head by a learned number, initially one. (cross-attention only)"""
    attn_gate_value_heads: bool | tuple[bool | None, ...] | None
    """Multiplies each head by the sigmoid of a projection of x; initialised nearly open."""
    cross_attn_gate_value_heads: bool | tuple[bool | None, ...] | None
    """Multiplies each head by the sigmoid of a projection of x; initialised nearly open. (cross-
    attention only)"""
    attn_gate_values: bool | tuple[bool | None, ...] | None
    """Multiplies each dimension of each head by the sigmoid of a projection of x."""
    cross_attn_gate_values: bool | tuple[bool | None, ...] | None
    """Multiplies each dimension of each head by the sigmoid of a projection of x. (cross-attention
    only)"""
    attn_swiglu_values: bool | tuple[bool | None, ...]
    """SiLU in place of the sigmoid"""
    cross_attn_swiglu_values: bool | tuple[bool | None, ...]
    """SiLU in place of the sigmoid (cross-attention only)"""
    attn_gate_values_bias: bool | tuple[bool | None, ...]
    """gate bias, initialised nearly open"""
    cross_attn_gate_values_bias: bool | tuple[bool | None, ...]
    """gate bias, initialised nearly open (cross-attention only)"""
    attn_out_bias: bool | tuple[bool | None, ...] | None
    """bias in the output projection; None: as `attn_bias`"""
    cross_attn_out_bias: bool | tuple[bool | None, ...] | None
    """bias in the output projection; None: as `attn_bias` (cross-attention only)"""
    attn_on_attn: bool | tuple[bool | None, ...] | None
    """A projection to 2 * D, whose second half gates the first by its sigmoid."""
    cross_attn_on_attn: bool | tuple[bool | None, ...] | None
    """A projection to 2 * D, whose second half gates the first by its sigmoid. (cross-attention only)"""
    residual_attn: bool | tuple[bool | None, ...] | None
    """Self-attention adds the scores of the previous self-attention."""
    cross_residual_attn: bool | tuple[bool | None, ...] | None
    """Cross-attention adds the scores of the previous cross-attention."""
    num_clusters: int | tuple[int | None, ...] | None
    """routing: clusters C of each head, about sqrt(T)"""
    window_size: int | tuple[int | None, ...]
    """keys of the cluster for each query, on each allowed side"""
    kmeans_ema_decay: float | tuple[float | None, ...]
    """decay of the moving averages of k-means"""
    commitment_factor: float | tuple[float | None, ...]
    """weight of the commitment loss of tokens to centroids"""
    routing_selection: (
        Literal["recent", "topk", "leaky"] | tuple[Literal["recent", "topk", "leaky"] | None, ...]
    )
    """keys of a query: recent keys of its cluster, or the keys that each centroid selects"""
    cluster_num_mem_kv: int | tuple[int | None, ...]
    """routing: learned prefix keys and values M of each cluster"""
    context_num_clusters: int | tuple[int | None, ...] | None
    """routing: clusters C of each head of cross-attention"""
    context_window_size: int | tuple[int | None, ...]
    """context tokens that each centroid selects"""
    context_selection: (
        Literal["nearest", "topk", "leaky"] | tuple[Literal["nearest", "topk", "leaky"] | None, ...]
    )
    """centroids select context tokens for the queries of their cluster, or select queries too"""
    n_local_attn_heads: int | tuple[int | None, ...] | None
    """number of heads with local attention"""
    local_attn_window_size: int | tuple[int | None, ...]
    """tokens of a window of local heads"""
    local_attn_radius_blocks: int | tuple[int | None, ...]
    """windows of keys on each allowed side, for local heads"""
    local_attn_fixed_windows: bool | tuple[bool | None, ...]
    """fixed windows by position, as in local-attention, not sliding"""
    attn_flash: bool | tuple[bool | None, ...] | None
    """attn_flash=True: torch.nn.functional.scaled_dot_product_attention; eager under transforms of
    `torch.func`.; attn_flash=False: softmax(q k^T) v in three steps; memory grows with T * S."""
    cross_attn_flash: bool | tuple[bool | None, ...] | None
    """attn_flash=True: torch.nn.functional.scaled_dot_product_attention; eager under transforms of
    `torch.func`.; attn_flash=False: softmax(q k^T) v in three steps; memory grows with T * S. (cross-
    attention only)"""
    attn_dropout: float | tuple[float | None, ...]
    """dropout of attention weights"""
    cross_attn_dropout: float | tuple[float | None, ...]
    """dropout of attention weights (cross-attention only)"""
    mixer_heads: int | tuple[int | None, ...] | None
    """heads H of a mixer; None: `heads`"""
    mixer_dim_key: int | tuple[int | None, ...] | None
    """width K of the keys of a mixer; None: `attn_dim_head`"""
    mixer_dim_value: int | tuple[int | None, ...] | None
    """width V of the values of a mixer; None: `attn_dim_head`"""
    mixer_key_groups: int | tuple[int | None, ...] | None
    """groups of heads that share keys and queries; None: one per head in gated DeltaNet, one in Mamba
    2"""
    mixer_kernel: int | tuple[int | None, ...]
    """tokens W that the causal convolution of a mixer reads"""
    mixer_chunk: int | tuple[int | None, ...]
    """tokens of a row that a mixer computes in parallel"""
    mixer_norm_eps: float | tuple[float | None, ...] | None
    """added to the mean square of a mixer's norm; None: 1e-6 in gated DeltaNet, 1e-5 in Mamba 2"""
    mixer_delta_rate: float | tuple[float | None, ...]
    """largest rate of the delta rule; 2 allows the state negative eigenvalues (OLMo hybrid)"""
    mixer_norm: bool | tuple[bool | None, ...]
    """a norm of the gated output of Mamba 2; False: none (Falcon-H1)"""
    mixer_scales: dict[str, Any] | tuple[dict[str, Any] | None, ...] | None
    """factors of the parts of the input projection of Mamba 2, by name: `gate`, `value`, `key`, `query`
    and `step`; 1 where a part is not named (Falcon-H1)"""
    ff_mult: float | tuple[float | None, ...]
    """inner width F = int(D * mult)"""
    ff_inner_dim: int | tuple[int | None, ...] | None
    """inner width F, in place of `ff_mult`"""
    ff_dropout: float | tuple[float | None, ...]
    """dropout before the output projection"""
    ff_no_bias: bool | tuple[bool | None, ...]
    """no biases in the feedforward (PaLM, 2204.02311)"""
    ff_post_act_ln: bool | tuple[bool | None, ...]
    """LayerNorm after the activation (2110.09456)"""
    ff_chunks: int | tuple[int | None, ...]
    """number of chunks of tokens, computed in sequence and recomputed in the backward"""
    ff_glu: bool | tuple[bool | None, ...] | None
    """gated linear units: of the feedforward, and of the experts of `ff_moe`"""
    ff_glu_mult_bias: bool | tuple[bool | None, ...]
    """a learned scale per inner dimension, after the gate"""
    ff_glu_limit: float | tuple[float | None, ...] | None
    """values of the gated linear unit are clamped to +-limit and gates to at most limit, before the
    activation (gpt-oss: 7); None: no limit"""
    ff_glu_offset: float | tuple[float | None, ...]
    """added to the values of the gated linear unit (gpt-oss: 1)"""
    ff_glu_gate_scale: float | tuple[float | None, ...]
    """factor of the gates before the activation (Falcon-H1)"""
    ff_pkm: bool | tuple[bool | None, ...] | None
    """Weighted sum of the values of the top-k of N ** 2 keys, found as pairs of N half keys."""
    pkm_num_keys: int | tuple[int | None, ...]
    """number N of half keys of a product-key memory with N ** 2 values"""
    ff_moe: bool | tuple[bool | None, ...] | None
    """Top-k mixture of experts, by default two, weighted by router probabilities that sum to one."""
    moe_num_experts: int | tuple[int | None, ...]
    """number E of experts"""
    moe_top_k: int | tuple[int | None, ...]
    """experts of each token"""
    moe_router: Literal["softmax", "sigmoid"] | tuple[Literal["softmax", "sigmoid"] | None, ...]
    """score of an expert, by the router's logits: their softmax, or the sigmoid of each (2412.19437)"""
    moe_router_bias: bool | tuple[bool | None, ...]
    """the router has a bias"""
    moe_normalize_weights: bool | tuple[bool | None, ...] | None
    """divide the weights of the chosen experts by their sum; None: if there are several"""
    moe_weight_scale: float | tuple[float | None, ...]
    """a factor of the weights (2412.19437: 2.5)"""
    moe_weight_input: bool | tuple[bool | None, ...]
    """weights multiply the inputs of experts, not their outputs (Llama 4)"""
    moe_num_groups: int | tuple[int | None, ...]
    """groups of experts, among which a token chooses first"""
    moe_top_groups: int | tuple[int | None, ...] | None
    """groups whose experts a token may choose (2412.19437); None: all"""
    moe_num_shared_experts: int | tuple[int | None, ...]
    """experts that every token uses, with weight 1"""
    moe_shared_inner_dim: int | tuple[int | None, ...] | None
    """inner width of a shared expert; None: F"""
    moe_shared_gate: bool | tuple[bool | None, ...]
    """a sigmoid of each token scales the shared experts (Qwen2-MoE)"""
    moe_balance_bias: bool | tuple[bool | None, ...]
    """balance the experts by a bias in their choice, without a gradient (2408.15664)"""
    moe_balance_bias_rate: float | tuple[float | None, ...]
    """step of the balance bias, after each update"""
    moe_loss_coef: float | tuple[float | None, ...]
    """weight of the load-balancing loss"""
    moe_balance_choices: Literal["first", "all"] | tuple[Literal["first", "all"] | None, ...]
    """experts of a token that the load-balancing loss counts: the first, as in 2101.03961, or all, as in
    Mixtral (a perfect balance is then `moe_top_k`, not 1)"""
    moe_sequence_loss_coef: float | tuple[float | None, ...]
    """weight of the load-balancing loss within each sequence (2412.19437)"""
    moe_z_loss_coef: float | tuple[float | None, ...]
    """weight of the router's z-loss (2202.08906)"""
    ff_swish: bool | tuple[bool | None, ...] | None
    """x * sigmoid(x), also called SiLU; with `ff_glu` this is SwiGLU."""
    ff_relu_squared: bool | tuple[bool | None, ...] | None
    """max(x, 0) ** 2 (Primer)."""
    ff_xielu: bool | tuple[bool | None, ...] | None
    """alpha_p x^2 + x / 2 for positive x, else alpha_n (e^x - 1 - x) + x / 2; both alphas are
    learned."""
    ff_activation: FfActivation | tuple[FfActivation | None, ...]
    """activation by name, as `hidden_act` of transformers"""
    shift_tokens: int | tuple[int | None, ...]
    """number of neighbours on each side to take dimensions from"""
    use_layerscale: bool | tuple[bool | None, ...] | None
    """A learned scale per dimension with a small initial value, applied after the sandwich norm."""
    layerscale_init_value: float | tuple[float | None, ...]
    """initial value of the scales"""
    residual_scale: float | tuple[float | None, ...]
    """factor of the output of each sublayer"""
    adaptive_gate: int | tuple[int | None, ...]
    """width C of the condition of gates of branches"""
    layer_dropout: float | tuple[float | None, ...]
    """probability that a row skips the sublayer"""
    # a Spec, a class or a module in place of the component that the flags select
    dims: Any
    plan: Any
    norm: Any
    norm_position: Any
    residual: Any
    init: Any
    executor: Any
    position_bias: Any
    values: Any
    projection: Any
    value_mod: Any
    qk_norm: Any
    rotation: Any
    window: Any
    prefix_kv: Any
    score: Any
    score_bias: Any
    normalizer: Any
    weight_mod: Any
    gate: Any
    output: Any
    core: Any
    local: Any
    kernel: Any
    sequence_mixer: Any
    feedforward: Any
    activation: Any
    input_mixer: Any
    branch: Any

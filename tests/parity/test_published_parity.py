"""Tiny random models of transformers against models of flags with their weights: equal logits."""

import pytest
import torch

import flagformer

transformers = pytest.importorskip("transformers")

DIM, HEADS, GROUPS, WIDTH, LAYERS, VOCABULARY, LENGTH = 32, 4, 2, 8, 2, 23, 12
SIZES = {
    "hidden_size": DIM, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    "intermediate_size": 2 * DIM, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
LLAMA = {
    "num_tokens": VOCABULARY, "max_seq_len": 64, "dim": DIM, "depth": LAYERS, "heads": HEADS,
    "attn_dim_head": WIDTH, "attn_kv_heads": GROUPS, "ff_glu": True, "ff_swish": True, "ff_mult": 2.0,
    "ff_no_bias": True, "rotary_pos_emb": True, "use_rmsnorm": True, "norm_eps": 1e-3,
}  # fmt: skip
SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [1.5, 2.0, 2.5, 3.0]
ORIGINAL = {"original_max_position_embeddings": 8}
LONGROPE = {"rope_type": "longrope", "factor": 8.0, "short_factor": SHORT, "long_factor": LONG, **ORIGINAL}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, **ORIGINAL}
YARN = {"rope_type": "yarn", "factor": 8.0, **ORIGINAL}
GROUPED = {"num_key_value_heads": GROUPS, "head_dim": WIDTH, "rms_norm_eps": 1e-3}


def rope(base=10000.0, **numbers):
    return {"rope_parameters": {"rope_theta": base, "rope_type": "default", **numbers}}


# name -> (class, its config, our flags)
LIKE_LLAMA = {
    "llama": ("Llama", {**GROUPED, **rope(500.0)}, {"rotary_base": 500.0}),
    "llama 3": ("Llama", {**GROUPED, **rope(**LLAMA3)}, {"rotary_scaling": LLAMA3}),
    "llama, yarn": ("Llama", {**GROUPED, **rope(**YARN)}, {"rotary_scaling": YARN}),
    "llama, biases, tied": (
        "Llama",
        {**GROUPED, "attention_bias": True, "tie_word_embeddings": True},
        {"attn_bias": True, "tie_embedding": True, "tie_embedding_scale": 1.0},
    ),
    "qwen 2": ("Qwen2", GROUPED, {"attn_qkv_bias": True}),
    "qwen 3": (
        "Qwen3",
        GROUPED,
        {"attn_qk_rmsnorm": True, "attn_qk_rmsnorm_weight": "shared", "attn_qk_rmsnorm_eps": 1e-3},
    ),
    "olmo 2": (
        "Olmo2",
        {**GROUPED, "eos_token_id": None},
        {
            "res_post_norm": True, "attn_qk_rmsnorm": True, "attn_qk_rmsnorm_all_heads": True,
            "attn_qk_rmsnorm_eps": 1e-3,
        },
    ),
    "granite": (
        "Granite",
        {
            **GROUPED, "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4,
            "logits_scaling": 2.5,
        },
        {"embedding_scale": 3.0, "attn_scale": 0.2, "residual_scale": 0.4, "logits_scale": 0.4},
    ),
    "phi 3": (
        "Phi3",
        {**GROUPED, **rope(**LONGROPE), **ORIGINAL, "eos_token_id": None, "bos_token_id": None},
        {"rotary_scaling": {**LONGROPE, "seq_len": LENGTH}},
    ),
}  # fmt: skip


def theirs_of(name, config, attention="eager"):
    torch.manual_seed(0)
    cls = getattr(transformers, f"{name}ForCausalLM")
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **config})
    model = cls._from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def renamed(theirs):
    """Their weights under our names."""
    state, own = dict(theirs.state_dict()), {}
    own["token_emb.weight"] = state.pop("model.embed_tokens.weight")
    own["attn_layers.final_norm.weight"] = state.pop("model.norm.weight")
    head = state.pop("lm_head.weight")
    if not theirs.config.tie_word_embeddings:
        own["head.project.weight"] = head
    for layer in range(LAYERS):
        whole = state.pop(f"model.layers.{layer}.mlp.gate_up_proj.weight", None)
        if whole is not None:
            gate, state[f"model.layers.{layer}.mlp.up_proj.weight"] = whole.chunk(2)
            state[f"model.layers.{layer}.mlp.gate_proj.weight"] = gate
        of_branches = f"model.layers.{layer}.post_feedforward_layernorm.weight" in state
        for ours, names in {**PARTS, **(BRANCH_NORMS if of_branches else PRE_NORMS)}.items():
            found = [f"model.layers.{layer}.{name}" for name in names]
            for kind in ("weight", "bias"):
                parts = [state.pop(f"{name}.{kind}") for name in found if f"{name}.{kind}" in state]
                if parts:
                    prefix = f"attn_layers.sublayers.{2 * layer + int(ours[0])}.{ours[2:]}"
                    own[prefix if ours.endswith("_weight") else f"{prefix}.{kind}"] = torch.cat(parts)
    assert not state, list(state)
    return own


PARTS = {
    "0 fn.source.projection.to_qkv": [f"self_attn.{name}_proj" for name in ("q", "k", "v", "qkv")],
    "0 fn.source.qk_norm.q_weight": ["self_attn.q_norm"],
    "0 fn.source.qk_norm.k_weight": ["self_attn.k_norm"],
    "0 fn.to_out": ["self_attn.o_proj"],
    "1 fn.w_in": ["mlp.up_proj", "mlp.gate_proj"],
    "1 fn.w_out": ["mlp.down_proj"],
}
PRE_NORMS = {"0 in_norm": ["input_layernorm"], "1 in_norm": ["post_attention_layernorm"]}
BRANCH_NORMS = {
    "0 branch_norm": ["post_attention_layernorm"],
    "1 branch_norm": ["post_feedforward_layernorm"],
}


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_models_like_llama(name):
    cls, config, flags = LIKE_LLAMA[name]
    theirs, ours = theirs_of(cls, config), flagformer.build({**LLAMA, **flags}).eval()
    check(theirs, ours, renamed(theirs))


def check(theirs, ours, state):
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    ours.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()})
    ids = torch.randint(VOCABULARY, (2, LENGTH))
    with torch.no_grad():
        want, got = theirs(ids, use_cache=False).logits, ours(ids)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_gpt_neox():
    """LayerNorms with bias, biased projections interleaved by head, a rotation of a part of each head."""
    config = {
        "use_parallel_residual": False, "layer_norm_eps": 1e-3, "hidden_act": "gelu", "eos_token_id": None,
        **rope(100.0, partial_rotary_factor=0.5),
    }  # fmt: skip
    theirs = theirs_of("GPTNeoX", config)
    sizes = ("num_tokens", "max_seq_len", "dim", "depth", "heads", "attn_dim_head")
    flags = {name: LLAMA[name] for name in sizes}
    flags |= {"rotary_pos_emb": True, "rotary_emb_dim": 4, "rotary_base": 100.0, "attn_bias": True}
    ours = flagformer.build({**flags, "ff_mult": 2.0, "norm_eps": 1e-3, "norm_bias": True}).eval()
    state, own = theirs.state_dict(), {"token_emb.weight": theirs.gpt_neox.embed_in.weight}
    own["head.project.weight"] = theirs.lm_head.weight
    for kind in ("weight", "bias"):
        own[f"attn_layers.final_norm.{kind}"] = state[f"gpt_neox.final_layer_norm.{kind}"]
        for layer in range(LAYERS):
            names = {
                "0 in_norm": "input_layernorm", "0 fn.source.projection.to_qkv": "attention.query_key_value",
                "0 fn.to_out": "attention.dense", "1 in_norm": "post_attention_layernorm",
                "1 fn.w_in": "mlp.dense_h_to_4h", "1 fn.w_out": "mlp.dense_4h_to_h",
            }  # fmt: skip
            for name, their_name in names.items():
                value = state[f"gpt_neox.layers.{layer}.{their_name}.{kind}"]
                if name.endswith("to_qkv"):  # [H, 3, K, ...] -> [3, H, K, ...]
                    value = value.unflatten(0, (HEADS, 3, WIDTH)).transpose(0, 1)
                prefix = f"attn_layers.sublayers.{2 * layer + int(name[0])}.{name[2:]}"
                own[f"{prefix}.{kind}"] = value
    check(theirs, ours, own)

"""Models with parallel blocks of transformers against models of flags with their weights: equal logits."""

import pytest
import torch
import torch.nn.functional as F
from test_published_parity import (
    DIM,
    GROUPS,
    HEADS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    check,
    rope,
    theirs_of,
)

import flagformer

BASE = {
    "num_tokens": VOCABULARY, "max_seq_len": 64, "dim": DIM, "depth": LAYERS, "heads": HEADS,
    "attn_dim_head": WIDTH, "ff_mult": 2.0, "norm_eps": 1e-3, "rotary_pos_emb": True, "parallel_block": True,
}  # fmt: skip
FUSED = "0 fn.source.projection.to_qkv"
Q_K_V = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
TIED = {"tie_embedding": True, "tie_embedding_scale": 1.0}


def by_head(weight):
    """[H, 3, K, ...] -> [3, H, K, ...]: queries, keys and values of each head."""
    return weight.unflatten(0, (HEADS, 3, WIDTH)).transpose(0, 1).flatten(0, 2)


def by_group(weight):
    """[G, H / G + 2, K, ...] -> all queries, all keys, all values: groups of heads with one key head."""
    whole = weight.unflatten(0, (GROUPS, HEADS // GROUPS + 2, WIDTH))
    return torch.cat([part.flatten(0, 2) for part in whole.split([HEADS // GROUPS, 1, 1], dim=1)])


NEOX = {
    "0 in_norm": "input_layernorm", "1 in_norm": "post_attention_layernorm",
    FUSED: "attention.query_key_value", "0 fn.to_out": "attention.dense", "1 fn.w_in": "mlp.dense_h_to_4h",
    "1 fn.w_out": "mlp.dense_4h_to_h",
}  # fmt: skip
GPTJ = {
    "0 in_norm": "ln_1", FUSED: ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "0 fn.to_out": "attn.out_proj",
    "1 fn.w_in": "mlp.fc_in", "1 fn.w_out": "mlp.fc_out",
}  # fmt: skip
PHI = {
    "0 in_norm": "input_layernorm", FUSED: Q_K_V, "0 fn.to_out": "self_attn.dense", "1 fn.w_in": "mlp.fc1",
    "1 fn.w_out": "mlp.fc2",
}  # fmt: skip
COHERE = {
    "0 in_norm": "input_layernorm", FUSED: Q_K_V, "0 fn.to_out": "self_attn.o_proj",
    "1 fn.w_in": ("mlp.up_proj", "mlp.gate_proj"), "1 fn.w_out": "mlp.down_proj",
}  # fmt: skip
FALCON = {
    "0 in_norm": "input_layernorm", FUSED: "self_attention.query_key_value",
    "0 fn.to_out": "self_attention.dense",
    "1 fn.w_in": "mlp.dense_h_to_4h", "1 fn.w_out": "mlp.dense_4h_to_h",
}  # fmt: skip
TWO_NORMS = {"0 in_norm": "ln_attn", "1 in_norm": "ln_mlp"}
LATER_NORM = {"1 in_norm": "post_attention_layernorm"}
# class -> names of the layers, embedding, final norm, head
NAMES = {
    "GPTNeoX": ("gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head"),
    "GPTJ": ("transformer.h", "transformer.wte", "transformer.ln_f", "lm_head"),
    "Phi": ("model.layers", "model.embed_tokens", "model.final_layernorm", "lm_head"),
    "Cohere": ("model.layers", "model.embed_tokens", "model.norm", ""),
    "Falcon": ("transformer.h", "transformer.word_embeddings", "transformer.ln_f", ""),
}
NO_IDS = {"eos_token_id": None, "bos_token_id": None}
FALCON_CONFIG = {"layer_norm_epsilon": 1e-3, "ffn_hidden_size": 2 * DIM, **NO_IDS}
FALCON_FLAGS = {"ff_no_bias": True, "norm_bias": True, **TIED}
NEW = {"new_decoder_architecture": True, "num_kv_heads": GROUPS}
GPTJ_CONFIG = {
    "n_embd": DIM, "n_head": HEADS, "n_layer": LAYERS, "n_inner": 2 * DIM, "layer_norm_epsilon": 1e-3,
    "rotary_dim": 4, "n_positions": 64, "tie_word_embeddings": False, **NO_IDS,
}  # fmt: skip
NEOX_CONFIG = {
    "layer_norm_eps": 1e-3, "hidden_act": "gelu", **rope(100.0, partial_rotary_factor=0.5), **NO_IDS
}  # fmt: skip
NEOX_FLAGS = {"attn_bias": True, "rotary_emb_dim": 4, "rotary_base": 100.0, "norm_bias": True}
PHI_FLAGS = {
    "attn_kv_heads": GROUPS, "attn_bias": True, "rotary_emb_dim": 4, "norm_bias": True,
    "logits_bias": True, "ff_activation": "gelu_tanh",
}  # fmt: skip
COHERE_FLAGS = {
    "attn_kv_heads": GROUPS, "rotary_interleaved": True, "tie_embedding": True,
    "tie_embedding_scale": 0.3, "ff_glu": True, "ff_swish": True, "ff_no_bias": True,
}  # fmt: skip
NORMED = {"attn_qk_layernorm": True, "attn_qk_layernorm_eps": 1e-3}
# name -> (class, its config, our flags, names of its parts, how its fused projection is ordered)
MODELS = {
    "gpt-neox": (
        "GPTNeoX",
        {**NEOX_CONFIG, "use_parallel_residual": True},
        {**NEOX_FLAGS, "parallel_block_own_norms": True},
        NEOX,
        by_head,
    ),
    "gpt-j": (
        "GPTJ",
        GPTJ_CONFIG,
        {
            "rotary_emb_dim": 4, "rotary_interleaved": True, "norm_bias": True, "logits_bias": True,
            "ff_activation": "gelu_tanh",
        },
        GPTJ,
        None,
    ),
    "phi": (
        "Phi",
        {"layer_norm_eps": 1e-3, "num_key_value_heads": GROUPS, **rope(partial_rotary_factor=0.5), **NO_IDS},
        PHI_FLAGS,
        PHI,
        None,
    ),
    "cohere": (
        "Cohere",
        {"layer_norm_eps": 1e-3, "num_key_value_heads": GROUPS, "logit_scale": 0.3, **rope(), **NO_IDS},
        COHERE_FLAGS,
        COHERE,
        None,
    ),
    "cohere, normed queries and keys": (
        "Cohere",
        {
            "layer_norm_eps": 1e-3, "num_key_value_heads": GROUPS, "logit_scale": 0.3, "use_qk_norm": True,
            **rope(), **NO_IDS,
        },
        {**COHERE_FLAGS, **NORMED},
        {
            **COHERE, "0 fn.source.qk_norm.q_norm": "self_attn.q_norm",
            "0 fn.source.qk_norm.k_norm": "self_attn.k_norm",
        },
        None,
    ),
    "phi, normed queries and keys": (
        "Phi",
        {
            "layer_norm_eps": 1e-3, "num_key_value_heads": GROUPS, "qk_layernorm": True,
            **rope(partial_rotary_factor=0.5), **NO_IDS,
        },
        {**PHI_FLAGS, **NORMED, "attn_qk_layernorm_weight": "shared", "attn_qk_layernorm_bias": True},
        {
            **PHI, "0 fn.source.qk_norm.q_norm": "self_attn.q_layernorm",
            "0 fn.source.qk_norm.k_norm": "self_attn.k_layernorm",
        },
        None,
    ),
    "falcon 7b": ("Falcon", FALCON_CONFIG, {**FALCON_FLAGS, "attn_kv_heads": 1}, FALCON, None),
    "falcon 40b": (
        "Falcon",
        {**FALCON_CONFIG, **NEW},
        {**FALCON_FLAGS, "attn_kv_heads": GROUPS, "parallel_block_own_norms": True},
        {**FALCON, **TWO_NORMS},
        by_group,
    ),
    "falcon 2 11b": (
        "Falcon",
        {**FALCON_CONFIG, **NEW, "num_ln_in_parallel_attn": 1},
        {**FALCON_FLAGS, "attn_kv_heads": GROUPS},
        FALCON,
        by_group,
    ),
    "falcon rw": (
        "Falcon",
        {**FALCON_CONFIG, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        {
            "alibi_pos_bias": True, "alibi_before_scale": True, "attn_bias": True, "norm_bias": True, **TIED,
            "rotary_pos_emb": False, "parallel_block": False,
        },
        {**FALCON, **LATER_NORM},
        by_head,
    ),
}  # fmt: skip


def renamed(theirs, cls, parts, order):
    """Their weights under our names."""
    layers, embedding, norm, head = NAMES[cls]
    state, own = dict(theirs.state_dict()), {}
    own["token_emb.weight"] = state.pop(f"{embedding}.weight")
    if head:
        own["head.project.weight"] = state.pop(f"{head}.weight")
    else:
        state.pop("lm_head.weight", None)
    if f"{head}.bias" in state:
        own["head.project.bias"] = state.pop(f"{head}.bias")
    for kind in ("weight", "bias"):
        if f"{norm}.{kind}" in state:
            own[f"attn_layers.final_norm.{kind}"] = state.pop(f"{norm}.{kind}")
        for layer in range(LAYERS):
            for name, found in parts.items():
                theirs_too = [
                    f"{layers}.{layer}.{one}.{kind}" for one in ([found] if isinstance(found, str) else found)
                ]
                if theirs_too[0] in state:
                    value = torch.cat([state.pop(one) for one in theirs_too])
                    value = order(value) if order is not None and name == FUSED else value
                    own[f"attn_layers.sublayers.{2 * layer + int(name[0])}.{name[2:]}.{kind}"] = value
    assert not state, list(state)
    return own


@pytest.mark.parametrize("name", MODELS)
def test_models_with_parallel_blocks(name):
    cls, config, flags, parts, order = MODELS[name]
    # Falcon's eager path adds ALiBi twice
    theirs = theirs_of(cls, config, attention="sdpa" if cls == "Falcon" else "eager")
    check(theirs, flagformer.build({**BASE, **flags}).eval(), renamed(theirs, cls, parts, order))


def test_palm():
    """arXiv:2204.02311, section 2: y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x)), SwiGLU, one key head,
    rotary, no biases, tied embeddings."""
    torch.manual_seed(0)
    flags = {"attn_kv_heads": 1, "ff_glu": True, "ff_swish": True, "ff_no_bias": True, **TIED}
    model = flagformer.build({**BASE, **flags}).double().eval()
    w = {name: value + 0.1 * torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(w)
    ids = torch.randint(VOCABULARY, (2, LENGTH))
    x = w["token_emb.weight"][ids]
    half = torch.arange(WIDTH // 2, dtype=torch.float64)
    turns = torch.outer(torch.arange(LENGTH, dtype=torch.float64), 10000.0 ** (-2 * half / WIDTH))

    def rotated(a):
        low, high = a.chunk(2, dim=-1)
        cos, sin = turns.cos(), turns.sin()
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    def norm(a, name):
        return F.layer_norm(a, (DIM,), w[f"attn_layers.{name}.weight"], None, 1e-3)

    for block in range(LAYERS):
        attention, feedforward = (f"attn_layers.sublayers.{2 * block + i}" for i in range(2))
        y = norm(x, f"sublayers.{2 * block}.in_norm")
        q, k, v = (y @ w[f"{attention}.fn.source.projection.to_qkv.weight"].T).split(
            [DIM, WIDTH, WIDTH], dim=-1
        )
        q = rotated(q.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2))
        scores = q @ rotated(k).mT[:, None] / WIDTH**0.5
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
        out = (scores.softmax(dim=-1) @ v[:, None]).transpose(1, 2).flatten(2)
        up, gate = (y @ w[f"{feedforward}.fn.w_in.weight"].T).chunk(2, dim=-1)
        mlp = (up * gate * gate.sigmoid()) @ w[f"{feedforward}.fn.w_out.weight"].T
        x = x + mlp + out @ w[f"{attention}.fn.to_out.weight"].T
    want = norm(x, "final_norm") @ w["token_emb.weight"].T
    torch.testing.assert_close(model(ids).detach(), want, rtol=1e-6, atol=1e-6)

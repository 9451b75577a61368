"""Tiny random encoder-decoders of transformers against models of flags with their weights: equal logits."""

import re

import pytest
import torch
from test_published_encoders_parity import joined, theirs_of, with_weights

import flagformer

transformers = pytest.importorskip("transformers")

DIM, LAYERS, VOCABULARY, SOURCE, TARGET = 32, 2, 23, 9, 7


def of_both(**flags):
    return {f"{half}{name}": value for half in ("enc_", "dec_") for name, value in flags.items()}


# name -> (their class, its configuration, our flags)
T5 = {
    "d_model": DIM, "d_kv": 6, "num_heads": 4, "d_ff": 2 * DIM, "num_layers": LAYERS,
    "num_decoder_layers": LAYERS + 1, "vocab_size": VOCABULARY, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12, "layer_norm_epsilon": 1e-3, "decoder_start_token_id": 0,
}  # fmt: skip
OF_T5 = of_both(
    heads=4, attn_dim_head=6, ff_mult=2.0, ff_no_bias=True, use_rmsnorm=True, norm_eps=1e-3, attn_scale=1.0,
    rel_pos_bias=True, rel_pos_bias_scale=1.0, rel_pos_num_buckets=8, rel_pos_max_distance=12,
)  # fmt: skip
BART = {
    "d_model": DIM, "encoder_layers": LAYERS, "decoder_layers": LAYERS + 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 2 * DIM, "decoder_ffn_dim": 3 * DIM,
    "vocab_size": VOCABULARY, "max_position_embeddings": 12,
}  # fmt: skip
OF_BART = {
    **of_both(
        pre_norm=False, norm_bias=True, attn_bias=True, use_abs_pos_emb=True, abs_pos_emb_offset=2,
        post_emb_norm=True, post_emb_norm_bias=True,
    ),
    "enc_heads": 4, "enc_attn_dim_head": 8, "enc_ff_mult": 2.0, "dec_heads": 2, "dec_attn_dim_head": 16,
    "dec_ff_mult": 3.0, "dec_tie_embedding": True, "dec_tie_embedding_scale": 1.0, "dec_logits_bias": True,
}  # fmt: skip
PAIRS = {
    "t5 v1.0": (
        "T5",
        {**T5, "feed_forward_proj": "relu"},
        # the scale of tied logits
        {**OF_T5, **of_both(ff_activation="relu"), "dec_tie_embedding": True},
    ),
    "t5 v1.0, an own head": (
        "T5",
        {**T5, "feed_forward_proj": "relu", "scale_decoder_outputs": True, "tie_word_embeddings": False},
        {**OF_T5, **of_both(ff_activation="relu"), "dec_logits_scale": DIM**-0.5},
    ),
    "t5 v1.1": (
        "T5",
        {
            **T5,
            "feed_forward_proj": "gated-gelu",
            "scale_decoder_outputs": False,
            "tie_word_embeddings": False,
        },
        {**OF_T5, **of_both(ff_glu=True, ff_activation="gelu_tanh")},
    ),
    "bart": ("Bart", BART, OF_BART),
    "bart, scaled embeddings": (
        "Bart",
        {**BART, "scale_embedding": True, "activation_function": "relu"},
        {**OF_BART, **of_both(embedding_scale=True, ff_activation="relu")},
    ),
}
# part of their name -> part of ours; `2x3+1` is sublayer 1 of layer 2, of three sublayers
RULES = {
    r"^model\.(?!shared)": "",
    r"^(model\.)?shared\.": "encoder.token_emb.",
    r"^encoder\.block\.(\d+)\.layer\.(\d)\.": r"encoder.attn_layers.sublayers.\1x2+\2.",
    r"^decoder\.block\.(\d+)\.layer\.(\d)\.": r"decoder.attn_layers.sublayers.\1x3+\2.",
    r"^encoder\.layers\.(\d+)\.(self_attn)": r"encoder.attn_layers.sublayers.\1x2+0.\2",
    r"^encoder\.layers\.(\d+)\.(fc|final)": r"encoder.attn_layers.sublayers.\1x2+1.\2",
    r"^decoder\.layers\.(\d+)\.(self_attn)": r"decoder.attn_layers.sublayers.\1x3+0.\2",
    r"^decoder\.layers\.(\d+)\.(encoder_attn)": r"decoder.attn_layers.sublayers.\1x3+1.\2",
    r"^decoder\.layers\.(\d+)\.(fc|final)": r"decoder.attn_layers.sublayers.\1x3+2.\2",
    r"coder\.final_layer_norm": "coder.attn_layers.final_norm",
    r"layernorm_embedding": "embedding.norm",
    r"embed_positions": "pos_emb.table",
    r"(self_attn_|encoder_attn_|final_)layer_norm": "out_norm",
    r"layer_norm": "in_norm",
    r"sublayers\.0x\d\+0\.SelfAttention\.relative_attention_bias\.weight": "position_bias.table",
    r"(SelfAttention|EncDecAttention|self_attn|encoder_attn)\.": "",
    r"\.(qkv|kv)\.": r".fn.source.projection.to_\1.",
    r"\.(q|q_proj)\.": ".fn.source.projection.to_q.",
    r"\.(o|out_proj)\.": ".fn.to_out.",
    r"(DenseReluDense\.(wi|up_gate)|fc1)\.": "fn.w_in.",
    r"(DenseReluDense\.wo|fc2)\.": "fn.w_out.",
    r"^lm_head\.": "decoder.head.project.",
    r"^final_logits_bias": "decoder.head.add_bias.bias",
    r"^decoder\.": "decoder.net.",
}


def renamed(theirs, tied):
    """Their weights under our names."""
    state = {name: value for name, value in theirs.state_dict().items() if "embed_tokens" not in name}
    for prefix in ("SelfAttention", "self_attn"):
        ends = ("", "", "") if prefix == "SelfAttention" else ("_proj", "_proj", "_proj")
        state = joined(state, f"{prefix}.qkv", *(f"{prefix}.{one}{end}" for one, end in zip("qkv", ends)))
    state = joined(state, "EncDecAttention.kv", "EncDecAttention.k", "EncDecAttention.v")
    state = joined(state, "encoder_attn.kv", "encoder_attn.k_proj", "encoder_attn.v_proj")
    state = joined(state, "up_gate", "wi_1", "wi_0")
    if tied:
        state.pop("lm_head.weight")
    own = {}
    for name, value in state.items():
        for rule, part in RULES.items():
            name = re.sub(rule, part, name)
        own[re.sub(r"(\d+)x(\d)\+(\d)", number, name)] = value
    return own


def number(found):
    layer, sublayers, sublayer = map(int, found.groups())
    return str(layer * sublayers + sublayer)


@pytest.mark.parametrize("name", PAIRS)
def test_encoder_decoders(name):
    cls, config, flags = PAIRS[name]
    config = getattr(transformers, f"{cls}Config")(**config)
    theirs = theirs_of(getattr(transformers, f"{cls}ForConditionalGeneration"), config)
    if cls == "Bart":  # a buffer of zeros
        theirs.final_logits_bias += torch.randn_like(theirs.final_logits_bias)
    sizes = {"depth": LAYERS, "num_tokens": VOCABULARY, "max_seq_len": 12}
    flags = {**of_both(**sizes), "dec_depth": LAYERS + 1, "dim": DIM, "tie_token_emb": True, **flags}
    ours = flagformer.build({"model": "xtransformer", **flags}).eval()
    ours = with_weights(ours, renamed(theirs, flags.get("dec_tie_embedding")))
    source, target = torch.randint(2, VOCABULARY, (2, SOURCE)), torch.randint(2, VOCABULARY, (2, TARGET))
    mask = torch.arange(SOURCE) < torch.tensor([[SOURCE], [SOURCE - 3]])
    with torch.no_grad():
        want = theirs(source, attention_mask=mask.long(), decoder_input_ids=target).logits
        got = ours.decoder.net(target, context=ours.encode(source, mask), context_mask=mask)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)

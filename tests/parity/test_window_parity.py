"""Windows of published models: tiny random attention layers of transformers against sublayers of flags."""

import pytest
import torch

import flagformer

transformers = pytest.importorskip("transformers")

D, H, G, K, T = 32, 4, 2, 8, 21
SIZES = {
    "hidden_size": D, "num_attention_heads": H, "num_hidden_layers": 2, "vocab_size": 23,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
PADDED = torch.arange(T) < torch.tensor([[T], [13]])


def alone(model, **flags):
    """Layers of one attention sublayer without norms."""
    layers = model(
        dim=D, custom_layers="a", heads=H, attn_dim_head=K, pre_norm=False, rotary_pos_emb=True,
        rotary_emb_dim=K, **flags,
    )  # fmt: skip
    layers.sublayers[0].out_norm = torch.nn.Identity()
    return layers.eval()


def observed(model, attention, **inputs):
    """Input and output of an attention module in a forward of a model."""
    seen = {}

    def keep(module, args, keywords, out):
        seen["x"], seen["out"] = args[0] if args else keywords["hidden_states"], out[0]

    handle = attention.register_forward_hook(keep, with_kwargs=True)
    model.eval()(**inputs)
    handle.remove()
    return seen["x"], seen["out"]


@torch.no_grad()
@pytest.mark.parametrize("form", ["eager", "sdpa"])
def test_modernbert_attends_to_half_its_window_on_each_side(form):
    torch.manual_seed(3)
    ropes = {
        kind: {"rope_type": "default", "rope_theta": 10000.0}
        for kind in ("full_attention", "sliding_attention")
    }
    config = transformers.ModernBertConfig(
        **SIZES, local_attention=6, global_attn_every_n_layers=2, rope_parameters=ropes,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, attn_implementation=form,
    )  # fmt: skip
    model = transformers.ModernBertModel(config)
    attention = model.layers[1].attn
    ids = torch.randint(3, 23, (2, T))
    x, want = observed(model, attention, input_ids=ids, attention_mask=PADDED.long())
    layers = alone(flagformer.Encoder, attn_max_attend_past=3, attn_max_attend_ahead=3)
    fn = layers.sublayers[0].fn
    fn.source.projection.to_qkv.weight.copy_(attention.Wqkv.weight)
    fn.to_out.weight.copy_(attention.Wo.weight)
    got = layers(x, mask=PADDED) - x
    torch.testing.assert_close(got[PADDED], want[PADDED], rtol=0, atol=1e-5)
    wider = alone(flagformer.Encoder, attn_max_attend_past=3)
    wider.load_state_dict(layers.state_dict())
    assert (wider(x, mask=PADDED) - x - want)[PADDED].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("form", ["eager", "sdpa"])
@pytest.mark.parametrize("start", [0, 2, 5])
def test_llama_4_attends_within_its_chunk(form, start):
    """Chunks are counted from the first token after the padding in front, in transformers too."""
    torch.manual_seed(3)
    config = transformers.Llama4TextConfig(
        **SIZES, attention_chunk_size=4, num_key_value_heads=G, head_dim=K, num_local_experts=1,
        intermediate_size_mlp=48, use_qk_norm=False, no_rope_layers=[1, 1], attn_temperature_tuning=False,
        rope_parameters=ROPE, attn_implementation=form,
    )  # fmt: skip
    model = transformers.Llama4TextModel(config)
    torch.nn.init.normal_(model.embed_tokens.weight)
    attention = model.layers[1].self_attn
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (parameter.shape[-1] ** -0.5))
    starts = torch.tensor([start, 0])
    valid = torch.arange(T) >= starts[:, None]
    positions = (torch.arange(T) - starts[:, None]).clamp(min=0)
    ids = torch.randint(3, 23, (2, T))
    given = {"attention_mask": valid.long(), "position_ids": positions, "use_cache": False}
    x, want = observed(model, attention, input_ids=ids, **given)
    layers = alone(flagformer.Decoder, attn_chunk_size=4, attn_kv_heads=G, rotary_interleaved=True)
    fn = layers.sublayers[0].fn
    assert config.layer_types[1] == "chunked_attention"
    weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    fn.source.projection.to_qkv.weight.copy_(torch.cat(weights))
    fn.to_out.weight.copy_(attention.o_proj.weight)
    got = layers(x, seq_start_pos=starts) - x
    torch.testing.assert_close(got[valid], want[valid], rtol=0, atol=1e-5)
    state = layers.init_state(2, T, seq_start_pos=starts)
    steps = torch.cat([layers(block, state=state) for block in x.split(3, dim=1)], dim=1) - x
    torch.testing.assert_close(steps[valid], want[valid], rtol=0, atol=1e-5)

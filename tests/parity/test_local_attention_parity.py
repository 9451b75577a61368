"""Local heads over fixed windows equal local-attention 1.11.2 and routing-transformer 1.6.1."""

import copy

import pytest
import torch
from local_attention import LocalAttention
from test_routing_transformer_parity import EXACT, SIZES, peer, perturbed

import flagformer

assert peer  # the fixture of the older package
WINDOW, HEADS, WIDTH = 4, 4, 8
OURS = {
    "num_tokens": 64, "max_seq_len": 64, "dim": 32, "depth": 1, "heads": HEADS, "attn_dim_head": WIDTH,
    "n_local_attn_heads": HEADS, "local_attn_window_size": WINDOW, "local_attn_fixed_windows": True,
    "use_abs_pos_emb": False,
}  # fmt: skip
POSITIONS = {
    "none": ({}, {"use_rotary_pos_emb": False}),
    "rotary": ({"rotary_pos_emb": True}, {"dim": WIDTH}),
    "xpos": (
        {"rotary_xpos": True, "rotary_xpos_scale_base": 16},
        {"dim": WIDTH, "use_xpos": True, "xpos_scale_base": 16},
    ),
    "shared": ({"shared_qk": True}, {"use_rotary_pos_emb": False, "shared_qk": True}),
}


def attention_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({**OURS, **flags}).double().eval()


@pytest.mark.parametrize("length", [4, 12, 19])
@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize(
    ("position", "causal"),
    [
        (position, causal)
        for position in POSITIONS
        for causal in (True, False)
        if causal or position != "xpos"
    ],
)
def test_the_attention_equals_that_of_the_package(position, causal, radius, length):
    """In fp64 (the package's rotary frequencies are fp32), with gradients, a key mask, and any length."""
    flags, theirs = POSITIONS[position]
    model = attention_of(model="decoder" if causal else "encoder", local_attn_radius_blocks=radius, **flags)
    layer = model.attn_layers.sublayers[0].fn
    peer = LocalAttention(
        WINDOW,
        causal=causal,
        look_backward=radius,
        look_forward=0 if causal else radius,
        autopad=True,
        **theirs,
    ).double()
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length - 1 :] = False
    seen = []
    layer.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    model(torch.randint(64, (2, length)), mask=mask)
    x, got = seen[0]
    weight = next(layer.source.projection.parameters())
    q, *k, v = (
        (x @ part.T).unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for part in weight.split(HEADS * WIDTH)
    )
    out = peer(q, k[0] if k else q, v, mask=mask)
    want = layer.to_out(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(got[mask], want[mask], rtol=0, atol=EXACT)
    grads = [torch.autograd.grad(found[mask].sum(), weight)[0] for found in (got, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=EXACT)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_a_routing_transformer_of_local_heads_equals_the_package(peer, causal, said):
    """Logits of a language model; biases of the package's local projections are zero, as ours has none.

    Its local heads are rotary for any `rel_pos_emb`, since local-attention receives only `dim`.
    """
    torch.manual_seed(0)
    sizes = {**SIZES, "local_attn_window_size": WINDOW, "n_local_attn_heads": HEADS}
    theirs = peer.RoutingTransformerLM(
        **sizes, causal=causal, rel_pos_emb=said, _register_kmeans_update=False
    )
    perturbed(theirs).eval()
    ours = flagformer.build(
        {
            **OURS,
            "model": "decoder" if causal else "encoder",
            "depth": 2,
            "max_seq_len": 32,
            "rotary_pos_emb": True,
        }
    ).eval()
    found = {
        "token_emb.weight": theirs.token_emb.weight,
        "attn_layers.final_norm.weight": theirs.norm.weight,
        "head.project.weight": theirs.out.weight,
    }
    for index, (attention, feedforward) in enumerate(theirs.routing_transformer.layers.layers):
        own, dense, here = attention.fn, feedforward.fn.fn, f"attn_layers.sublayers.{2 * index}"
        own.local_to_qkv.bias.data.zero_()
        found |= {
            f"{here}.in_norm.weight": attention.norm.weight,
            f"{here}.fn.source.projection.to_qkv.weight": own.local_to_qkv.weight,
            f"{here}.fn.to_out.weight": own.to_out.weight,
        }
        here = f"attn_layers.sublayers.{2 * index + 1}"
        found[f"{here}.in_norm.weight"] = feedforward.norm.weight
        for name, part in (("w_in", dense.w1), ("w_out", dense.w2)):
            found |= {f"{here}.fn.{name}.{kind}": value for kind, value in part.named_parameters()}
    ours.load_state_dict(copy.deepcopy(found))
    ids = torch.randint(64, (2, 32))
    torch.testing.assert_close(ours(ids), theirs(ids)[0], rtol=0, atol=EXACT)
    mask = torch.arange(32) < torch.tensor([[32], [24]])
    got, want = ours(ids, mask=mask), theirs(ids, input_mask=mask)[0]
    torch.testing.assert_close(got[mask], want[mask], rtol=0, atol=EXACT)

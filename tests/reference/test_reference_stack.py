"""Order, placement of norms, heads, and whole models against models written by hand."""

import pytest
import reference_formulas as paper
import torch

import flagformer
from flagformer.head.heads import LinearHead, TiedHead

# flags -> kinds of the modules, and the module of each step
PLANS = [
    ({"depth": 2}, "af af", "0123"),
    ({"depth": 2, "cross_attend": True}, "acf acf", "012345"),
    ({"depth": 2, "only_cross": True}, "cf cf", "0123"),
    ({"depth": 2, "macaron": True}, "faf faf", "012345"),
    ({"depth": 1, "macaron": True, "cross_attend": True}, "facf", "0123"),
    ({"depth": 1, "macaron": True, "only_cross": True}, "fcf", "012"),
    ({"depth": 3, "sandwich_coef": 1}, "a afaf f", "012345"),
    ({"depth": 3, "sandwich_coef": 3}, "aaa fff", "012345"),
    ({"depth": 3, "sandwich_coef": 2, "cross_attend": True}, "aa acf ff", "0123456"),
    ({"depth": 2, "sandwich_coef": 1, "macaron": True}, "a faf f", "01234"),
    ({"custom_layers": ("a", "a", "f")}, "aaf", "012"),
    ({"custom_layers": "fcaf"}, "fcaf", "0123"),
    ({"depth": 3, "weight_tie_layers": True}, "af", "010101"),
    ({"depth": 2, "layers_execute_order": (3, 1, 0, 2, 1)}, "afaf", "31021"),
    ({"custom_layers": "aff", "layers_execute_order": (0, 1, 0, 2)}, "aff", "0102"),
    ({"depth": 4, "par_ratio": 3}, "aff aff ff", "01234567"),
    ({"depth": 6, "par_ratio": 3}, "af af af af ffff", "0123456789ab"),
    ({"depth": 4, "par_ratio": 4, "only_cross": True}, "cff cff ff", "01234567"),
    ({"depth": 4, "par_ratio": 6, "cross_attend": True}, "acffff acffff", "0123456789ab"),
    ({"depth": 2, "weight_tie_layers": True, "cross_attend": True}, "acf", "012012"),
    ({"depth": 2, "weight_tie_layers": True, "macaron": True}, "faf", "012012"),
]


@pytest.mark.parametrize(("flags", "kinds", "order"), PLANS, ids=lambda value: str(value))
def test_plans(flags, kinds, order):
    layers = flagformer.Decoder(dim=8, heads=2, **flags)
    assert "".join(sublayer.kind for sublayer in layers.sublayers) == kinds.replace(" ", "")
    assert "".join(f"{index:x}" for index in layers.resolved.plan.order) == order
    assert [id(step) for step in layers.steps] == [id(layers.sublayers[int(i, 16)]) for i in order]


def test_final_norm_can_be_left_out():
    """Pre-norm without the final norm: the output is the residual stream."""
    layers = flagformer.Decoder(dim=8, heads=2, custom_layers="f", pre_norm_has_final_norm=False)
    x = torch.randn(1, 3, 8)
    (sublayer,) = layers.sublayers
    torch.testing.assert_close(layers(x), x + sublayer.fn(sublayer.in_norm(x), None))


@pytest.mark.parametrize(
    ("kind", "macaron", "share"), [("f", True, 0.5), ("f", False, 1.0), ("a", True, 1.0)]
)
def test_feedforwards_of_a_macaron_are_half_steps(kind, macaron, share):
    """arXiv:1906.02762, equation 5; attention is a full step."""
    layers = flagformer.Decoder(dim=8, heads=2, custom_layers=kind, macaron=macaron).double()
    branch = flagformer.Decoder(dim=8, heads=2, custom_layers=kind).double()
    branch.load_state_dict(layers.state_dict())
    for stack in (layers, branch):
        stack.final_norm = torch.nn.Identity()
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(layers(x), x + share * (branch(x) - x))


def norm(gain, x):
    return torch.stack([paper.layer_norm(row, gain) for row in x.flatten(0, -2)]).view_as(x)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
@torch.no_grad()
def test_placement_of_norms(placement):
    """Pre: arXiv:2002.04745, figure 1b. Post: 1706.03762, section 3.1. Sandwich: 2105.13290, figure 3c."""
    flags = {"pre": {}, "post": {"pre_norm": False}, "sandwich": {"sandwich_norm": True}}[placement]
    layers = flagformer.Decoder(
        dim=8, heads=2, attn_dim_head=4, depth=1, use_layerscale=True, **flags
    ).double()
    for parameter in layers.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    layers.eval()
    state = layers.state_dict()
    gains = {
        name.removesuffix(".weight"): value
        for name, value in state.items()
        if name.endswith(".weight") and value.dim() == 1
    }
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    h = x
    for i, fn in enumerate((run_attention(layers), lambda x: layers.sublayers[1].fn(x, None))):
        seen = h if placement == "post" else norm(gains[f"sublayers.{i}.in_norm"], h)
        out = fn(seen)
        if placement == "sandwich":
            out = norm(gains[f"sublayers.{i}.branch_norm"], out)
        h = h + out * gains[f"sublayers.{i}.branch"]
        if placement == "post":
            h = norm(gains[f"sublayers.{i}.out_norm"], h)
    if placement != "post":
        h = norm(gains["final_norm"], h)
    torch.testing.assert_close(layers(x), h)
    holders = {name.split(".")[-1] for name in gains}
    assert (
        holders
        == {
            "pre": {"in_norm", "branch", "final_norm"},
            "post": {"out_norm", "branch"},
            "sandwich": {"in_norm", "branch_norm", "branch", "final_norm"},
        }[placement]
    )


def run_attention(layers):
    """The first sublayer's attention by the formula, causal."""
    attention = layers.sublayers[0].fn
    weights = attention.source.projection.to_qkv.weight.detach(), attention.to_out.weight.detach()

    def run(x):
        return by_hand(x[0], *weights, heads=2, width=4)[None]

    return run


def by_hand(x, qkv, out, heads, width, groups=None, turn=lambda vector, position: vector):
    """Causal attention for one row x [T, D]."""
    groups = groups or heads
    q, k, v = (x @ qkv.T).split([heads * width, groups * width, groups * width], dim=-1)

    def head(flat, index):
        return list(flat[:, index * width : (index + 1) * width])

    outs = []
    for h in range(heads):
        g = h * groups // heads
        queries = [turn(vector, i) for i, vector in enumerate(head(q, h))]
        keys = [turn(vector, i) for i, vector in enumerate(head(k, g))]
        outs.append(torch.stack(paper.attend(queries, keys, head(v, g), width**-0.5, lambda i, j: j <= i)))
    return torch.cat(outs, dim=-1) @ out.T


def test_heads():
    """A linear projection, or products with the embedding (arXiv:1608.05859), divided by sqrt(D)."""
    x, table = torch.randn(2, 3, 6), torch.randn(11, 6)

    def vectors(device):
        return table.to(device)

    own = LinearHead(6, 11)
    torch.testing.assert_close(own(x, vectors), x @ own.project.weight.T)
    torch.testing.assert_close(TiedHead(6, 11)(x, vectors), x @ table.T / 6**0.5)


def perturbed(**flags):
    torch.manual_seed(3)
    model = flagformer.build({"num_tokens": 11, "max_seq_len": 8, "dim": 12, "depth": 2, "heads": 4, **flags})
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model, model.state_dict()


def test_gpt_like_decoder_by_hand():
    """Learned positions, LayerNorm, GELU, biases in the feedforward: every step explicitly."""
    model, w = perturbed(attn_dim_head=4)
    ids = torch.tensor([3, 0, 7, 7, 10])
    x = w["token_emb.weight"][ids] + w["pos_emb.table.weight"][:5]
    for block in range(2):
        a, f = f"attn_layers.sublayers.{2 * block}", f"attn_layers.sublayers.{2 * block + 1}"
        qkv, out = w[f"{a}.fn.source.projection.to_qkv.weight"], w[f"{a}.fn.to_out.weight"]
        x = x + by_hand(norm(w[f"{a}.in_norm.weight"], x), qkv, out, heads=4, width=4)
        seen = norm(w[f"{f}.in_norm.weight"], x)
        inner = torch.stack(
            [paper.gelu(row) for row in seen @ w[f"{f}.fn.w_in.weight"].T + w[f"{f}.fn.w_in.bias"]]
        )
        x = x + inner @ w[f"{f}.fn.w_out.weight"].T + w[f"{f}.fn.w_out.bias"]
    want = norm(w["attn_layers.final_norm.weight"], x) @ w["head.project.weight"].T
    assert sum(value.numel() for value in w.values()) == model.num_params()
    torch.testing.assert_close(model(ids[None]).detach()[0], want)


def test_llama_like_decoder_by_hand():
    """RMSNorm, rotary positions, grouped keys, SwiGLU without biases, tied embedding."""
    model, w = perturbed(
        attn_dim_head=4, use_rmsnorm=True, rotary_pos_emb=True, attn_kv_heads=2, ff_glu=True, ff_swish=True,
        ff_no_bias=True, ff_mult=8 / 3, tie_embedding=True,
    )  # fmt: skip
    ids = torch.tensor([3, 0, 7, 7, 10, 1])
    x = w["token_emb.weight"][ids]

    def rms(gain, x):
        return torch.stack([paper.rms_norm(row, gain) for row in x])

    for block in range(2):
        a, f = f"attn_layers.sublayers.{2 * block}", f"attn_layers.sublayers.{2 * block + 1}"
        qkv, out = w[f"{a}.fn.source.projection.to_qkv.weight"], w[f"{a}.fn.to_out.weight"]
        seen = rms(w[f"{a}.in_norm.weight"], x)
        x = x + by_hand(seen, qkv, out, heads=4, width=4, groups=2, turn=paper.rotate)
        value, gate = (rms(w[f"{f}.in_norm.weight"], x) @ w[f"{f}.fn.w_in.weight"].T).chunk(2, dim=-1)
        x = x + (value * torch.stack([paper.swish(row) for row in gate])) @ w[f"{f}.fn.w_out.weight"].T
    want = rms(w["attn_layers.final_norm.weight"], x) @ w["token_emb.weight"].T / 12**0.5
    assert not [name for name in w if "bias" in name or "pos_emb" in name or "head" in name]
    got = model(ids[None]).detach()[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # fp32 angles


def test_tied_block_runs_repeatedly():
    """ALBERT (arXiv:1909.11942): a tied model is the untied one with the same weights in each block."""
    tied, weights = perturbed(weight_tie_layers=True, depth=3, rotary_pos_emb=True, attn_dim_head=4)
    untied, _ = perturbed(depth=3, rotary_pos_emb=True, attn_dim_head=4)
    state = {}
    for name, value in untied.state_dict().items():
        parts = name.split(".")
        if parts[1] == "sublayers":
            parts[2] = str(int(parts[2]) % 2)
        state[name] = weights[".".join(parts)]
        assert state[name].shape == value.shape
    untied.load_state_dict(state)
    ids = torch.randint(11, (2, 6))
    torch.testing.assert_close(tied(ids), untied(ids))
    assert tied.num_params() < untied.num_params()

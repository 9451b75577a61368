"""Parallel blocks against their formula, h + attention(norm(h)) + feedforward(norm(h))."""

import pytest
import torch

import flagformer

D = 12
CONTEXT = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def stack(depth=2, **flags):
    """A perturbed stack in fp64, and an input."""
    torch.manual_seed(5)
    sizes = {"dim": D, "depth": depth, "heads": 2, "attn_dim_head": 6}
    layers = flagformer.Decoder(**sizes, parallel_block=True, **flags).double().eval()
    for parameter in layers.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return layers, torch.randn(2, 5, D, dtype=torch.float64)


def outputs(layers, x, **context):
    """The output of the stack, and that of the function of each sublayer."""
    seen = []
    hooks = [s.fn.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
             for s in layers.sublayers]  # fmt: skip
    out = layers(x, **context)
    for hook in hooks:
        hook.remove()
    return out, [given for given, _ in seen], [out for _, out in seen]


def check(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_one_norm_of_the_block():
    """GPT-J, PaLM (arXiv:2204.02311, section 2)."""
    layers, x = stack()
    got, read, outs = outputs(layers, x)
    h = x
    for block in range(2):
        normed = layers.sublayers[2 * block].in_norm(h)
        check(read[2 * block], normed)
        assert read[2 * block] is read[2 * block + 1], "the norm is computed once a block"
        h = h + outs[2 * block] + outs[2 * block + 1]
    check(got, layers.final_norm(h))
    norms = [name for name in layers.state_dict() if "norm" in name]
    assert norms == ["sublayers.0.in_norm.weight", "sublayers.2.in_norm.weight", "final_norm.weight"]


def test_own_norms():
    """GPT-NeoX (arXiv:2204.06745, section 2.1)."""
    layers, x = stack(parallel_block_own_norms=True)
    got, read, outs = outputs(layers, x)
    h = x
    for block in range(2):
        for index in (2 * block, 2 * block + 1):
            check(read[index], layers.sublayers[index].in_norm(h))
        h = h + outs[2 * block] + outs[2 * block + 1]
    check(got, layers.final_norm(h))
    assert "sublayers.1.in_norm.weight" in layers.state_dict()


def test_cross_attention_joins_the_block():
    layers, x = stack(cross_attend=True)
    got, read, outs = outputs(layers, x, context=CONTEXT)
    h = x
    for block in range(2):
        for index in range(3 * block, 3 * block + 3):
            check(read[index], layers.sublayers[3 * block].in_norm(h))
        h = h + sum(outs[3 * block : 3 * block + 3])
    check(got, layers.final_norm(h))


def test_tied_blocks():
    layers, x = stack(3, weight_tie_layers=True)
    got, _, outs = outputs(layers, x)
    check(got, layers.final_norm(x + sum(outs)))
    assert len(outs) == 6
    assert "order: a+f a+f a+f\n" in layers.explain()
    assert len(layers.sublayers) == 2


@pytest.mark.parametrize("name", ["pre_norm=False", "sandwich_norm", "res_post_norm", "resi_dual"])
def test_positions_of_norms(name):
    layers, x = stack(**({"pre_norm": False} if "=" in name else {name: True}))
    got, read, outs = outputs(layers, x)
    h, dual = x, x
    for first, last in ((0, 1), (2, 3)):
        one, other = layers.sublayers[first], layers.sublayers[last]
        want = one.in_norm(h) if name == "sandwich_norm" else h
        check(read[first], want)
        check(read[last], want)
        a, f = outs[first], outs[last]
        if name in ("sandwich_norm", "res_post_norm"):
            a, f = one.branch_norm(a), other.branch_norm(f)
        h, dual = h + a + f, dual + a + f
        if name in ("pre_norm=False", "resi_dual"):
            h = other.out_norm(h)
    check(got, h + layers.final_norm(dual) if name == "resi_dual" else layers.final_norm(h))
    blocks = 2 if name in ("pre_norm=False", "resi_dual") else 0
    assert sum(name.endswith("out_norm.weight") for name in layers.state_dict()) == blocks


@pytest.mark.parametrize(
    "flags", [{"scale_residual": True, "scale_residual_constant": 1.5}, {"gate_residual": True}], ids=str
)
def test_a_residual_takes_the_block_as_one_sublayer(flags):
    layers, x = stack(**flags)
    got, _, outs = outputs(layers, x)
    inner, h = layers.residual.inner, x
    for block in range(2):
        h = inner.write(h, outs[2 * block] + outs[2 * block + 1], block)
    check(got, layers.final_norm(h))
    assert len(inner.of_out if "gate_residual" in flags else inner.weight) == 2


def test_branches_are_scaled_one_by_one():
    layers, x = stack(residual_scale=(0.5, 2.0, 3.0, 0.25))
    got, _, outs = outputs(layers, x)
    scaled = [scale * out for scale, out in zip((0.5, 2.0, 3.0, 0.25), outs)]
    check(got, layers.final_norm(x + sum(scaled)))


def test_reversible_blocks():
    """x[i + 1] = x[i - 1] + block(x[i]); the output is the mean of the last two."""
    layers, x = stack(reversible=True)
    got, _, outs = outputs(layers, x)
    first = x + outs[0] + outs[1]
    second = x + outs[2] + outs[3]
    check(got, layers.final_norm((first + second) / 2))
    with torch.no_grad():
        check(layers(x), got)


REFUSED = [
    ({"macaron": True}, "`macaron` runs feedforwards before and after attention"),
    ({"sandwich_coef": 1}, "`sandwich_coef` orders single sublayers"),
    ({"par_ratio": 2}, "`par_ratio` orders single sublayers"),
    ({"layers_execute_order": (0, 1, 2, 3)}, "`layers_execute_order` orders single sublayers"),
    ({"depth": None, "custom_layers": "af"}, "`custom_layers` orders single sublayers"),
    ({"parallel_block": False, "parallel_block_own_norms": True}, "no blocks are parallel"),
    ({"parallel_block_own_norms": True, "use_simple_rmsnorm": True}, "`use_simple_rmsnorm` cannot be"),
    ({"parallel_block_own_norms": True, "pre_norm": False}, "`pre_norm=False` cannot be"),
    ({"parallel_block_own_norms": True, "res_post_norm": True}, "`res_post_norm` cannot be"),
    ({"parallel_block_own_norms": True, "resi_dual": True}, "`resi_dual` cannot be"),
]


@pytest.mark.parametrize(("flags", "text"), REFUSED, ids=str)
def test_refused(flags, text):
    given = {"dim": D, "depth": 2, "heads": 2, "parallel_block": True, **flags}
    with pytest.raises(flagformer.FlagError, match=text):
        flagformer.Decoder(**{name: value for name, value in given.items() if value is not None})

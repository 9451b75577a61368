"""Norms, activations, feedforwards and branches against their papers' formulas."""

import pytest
import reference_formulas as paper
import torch

from flagformer.branch.scale import HalfStep, LayerScale
from flagformer.branch.stochastic_depth import StochasticDepth
from flagformer.feedforward.activation import GELU, ReLUSquared, Swish
from flagformer.feedforward.dense import GLU, Dense
from flagformer.flow import Dims
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.norm.simple_rmsnorm import SimpleRMSNorm

DIMS = Dims(dim=6, heads=2, dim_head=4)


def each(formula, x, *more):
    """The formula on each vector of the last dimension."""
    return torch.stack([formula(row, *more) for row in x.flatten(0, -2)]).view_as(x)


def double(shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(("cls", "formula"), [(LayerNorm, paper.layer_norm), (RMSNorm, paper.rms_norm)])
def test_norms(cls, formula):
    norm = cls(6).double()
    norm.weight.data = double(6)
    x = double((2, 3, 6)) * 5 + 2
    torch.testing.assert_close(norm(x), each(formula, x, norm.weight.detach()), rtol=1e-10, atol=1e-10)


def test_scale_norm():
    norm = ScaleNorm(6).double()
    x = double((2, 3, 6)) * 5 + 2
    lengths = norm(x).norm(dim=-1)
    torch.testing.assert_close(
        lengths, torch.full_like(lengths, 6**0.5), rtol=1e-6, atol=0
    )  # the initial value is fp32
    norm.weight.data = double(1)
    torch.testing.assert_close(
        norm(x), each(paper.scale_norm, x, norm.weight.detach()), rtol=1e-10, atol=1e-10
    )


def test_simple_rms_norm():
    x = double((2, 3, 6)) * 5 + 2
    want = each(paper.rms_norm, x, torch.ones(6).double())
    torch.testing.assert_close(SimpleRMSNorm(6)(x), want, rtol=1e-10, atol=1e-10)
    assert not list(SimpleRMSNorm(6).parameters())


@pytest.mark.parametrize("cls", [LayerNorm, RMSNorm, ScaleNorm, SimpleRMSNorm])
def test_norms_of_zeros_are_finite_with_correct_gradients(cls):
    norm = cls(6)
    zeros = torch.zeros(1, 6, requires_grad=True)
    norm(zeros).sum().backward()
    assert (norm(zeros) == 0).all()
    assert zeros.grad.isfinite().all()
    x = double((2, 6)).requires_grad_()
    assert torch.autograd.gradcheck(norm.double(), x)


def test_rms_norm_normalises_small_vectors():
    """An epsilon of 1e-5 would shrink a vector of size 1e-4 to a thirtieth."""
    x = torch.randn(4, 6) * 1e-4
    torch.testing.assert_close(RMSNorm(6)(x).square().mean(-1).detach(), torch.ones(4))


ACTIVATIONS = [(GELU, paper.gelu), (Swish, paper.swish), (ReLUSquared, paper.relu_squared)]


@pytest.mark.parametrize(("cls", "formula"), ACTIVATIONS)
def test_activations(cls, formula):
    x = double((5, 6)) * 3
    torch.testing.assert_close(cls()(x), each(formula, x))


@pytest.mark.parametrize(("cls", "formula"), ACTIVATIONS)
@pytest.mark.parametrize("no_bias", [False, True])
@pytest.mark.parametrize("post_act_ln", [False, True])
def test_dense_feedforward(cls, formula, no_bias, post_act_ln):
    """arXiv:1706.03762, equation 2, with any activation."""
    layer = Dense(DIMS, cls(), mult=1.5, no_bias=no_bias, post_act_ln=post_act_ln).double()
    weights = layer.state_dict()
    x = double((1, 2, 6))
    inner = x @ weights["w_in.weight"].T + weights.get("w_in.bias", 0)
    inner = each(formula, inner)
    if post_act_ln:
        inner = each(paper.layer_norm, inner, weights["norm.weight"])
    want = inner @ weights["w_out.weight"].T + weights.get("w_out.bias", 0)
    assert inner.shape[-1] == 9, "F = int(D * mult)"
    assert {"w_in.bias", "w_out.bias"} & set(weights) == (set() if no_bias else {"w_in.bias", "w_out.bias"})
    torch.testing.assert_close(layer(x, None), want)


@pytest.mark.parametrize(("cls", "formula"), ACTIVATIONS)
def test_gated_feedforward(cls, formula):
    """arXiv:2002.05202, equation 5: FFN_GLU(x) = (act(x W) * (x V)) W2."""
    layer = GLU(DIMS, cls(), mult=2.0).double()
    weights = layer.state_dict()
    x = double((1, 2, 6))
    both = x @ weights["w_in.weight"].T + weights["w_in.bias"]
    values, gates = both[..., :12], both[..., 12:]
    want = (values * each(formula, gates)) @ weights["w_out.weight"].T + weights["w_out.bias"]
    torch.testing.assert_close(layer(x, None), want)


@pytest.mark.parametrize("cls", [Dense, GLU])
def test_feedforward_dropout_keeps_the_mean(cls):
    layer = cls(DIMS, GELU(), dropout=0.5)
    x = torch.randn(1, 2, 6)
    with torch.no_grad():
        plain = layer.eval()(x, None)
        draws = torch.stack([layer.train()(x, None) for _ in range(4000)])
    assert not torch.equal(draws[0], draws[1])
    deviation = 5 * draws.std(0) / 4000**0.5  # five standard errors
    assert ((draws.mean(0) - plain).abs() < deviation).all()


def test_layer_scale_multiplies_each_dimension():
    """arXiv:2103.17239, equation 2."""
    branch = LayerScale(DIMS, init_value=0.25)
    assert (branch.weight == 0.25).all()
    branch.weight.data = torch.randn(6)
    x = torch.randn(2, 3, 6)
    assert torch.equal(branch(x), torch.stack([x[..., d] * branch.weight[d] for d in range(6)], dim=-1))


def test_macaron_half_step():
    x = torch.randn(2, 3, 6)
    assert torch.equal(HalfStep()(x), x / 2)


def test_stochastic_depth_drops_rows_and_keeps_the_mean():
    """arXiv:1603.09382: survival probability 1 - p, expectation unchanged (here by scaling in training)."""
    branch = StochasticDepth(DIMS, rate=0.3)
    x = torch.randn(10_000, 3, 6)
    assert torch.equal(branch.eval()(x), x)
    out = branch.train()(x)
    kept = (out != 0).flatten(1).all(dim=1)
    assert torch.equal(kept, (out != 0).flatten(1).any(dim=1)), "a row is skipped as a whole"
    # standard deviation of the fraction of 10,000 rows: sqrt(.3 * .7 / 10000) = 0.0046
    assert abs(kept.float().mean() - 0.7) < 0.023
    torch.testing.assert_close(out[kept], x[kept] / 0.7)


def test_stochastic_depth_follows_torch_seed():
    branch = StochasticDepth(DIMS, rate=0.5)
    x = torch.randn(64, 1, 6)
    torch.manual_seed(3)
    first = branch(x)
    torch.manual_seed(3)
    assert torch.equal(branch(x), first)
    assert not torch.equal(branch(x), first)


def test_weight_after_the_gate():
    """A weight per inner dimension, initialised to one: no effect before training."""
    torch.manual_seed(0)
    layer = GLU(DIMS, GELU(), mult=2.0, mult_bias=True).double()
    plain = GLU(DIMS, GELU(), mult=2.0).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = double((1, 2, 6))
    assert torch.equal(layer(x, None), plain(x, None))
    layer.gain.weight.data = torch.linspace(-1, 2, 12, dtype=torch.float64)
    weights = layer.state_dict()
    values, gates = (x @ weights["w_in.weight"].T + weights["w_in.bias"]).chunk(2, dim=-1)
    gained = values * each(paper.gelu, gates) * weights["gain.weight"]
    torch.testing.assert_close(layer(x, None), gained @ weights["w_out.weight"].T + weights["w_out.bias"])


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_second_derivatives_of_layer_norm(weight, bias):
    """Reverse over reverse is forward over reverse; torch's is wrong for a bias without a weight."""
    torch.manual_seed(1)
    norm = LayerNorm(5, weight=weight, bias=bias).double()
    weights = {name: torch.randn_like(p) for name, p in norm.named_parameters()} | {"x": double((3, 5))}
    along = {name: torch.randn_like(p) for name, p in weights.items()}

    def slope(values):
        given = {name: value for name, value in values.items() if name != "x"}
        return torch.func.functional_call(norm, given, (values["x"],)).cos().sum()

    first = torch.func.grad(slope)
    _, forward = torch.func.jvp(first, (weights,), (along,))
    reverse = torch.func.grad(lambda values: sum((first(values)[name] * along[name]).sum() for name in along))
    torch.testing.assert_close(reverse(weights), forward, rtol=0, atol=1e-12)

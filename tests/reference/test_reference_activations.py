"""Activations by name against their formulas, number by number, and the inner width."""

from math import erf, exp, log1p, pi, sqrt, tanh

import pytest
import torch

import flagformer
from flagformer.feedforward.activation import ACTIVATIONS
from flagformer.feedforward.xielu import XIELU

FORMULAS = {
    "gelu": lambda x: x * (1 + erf(x / sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x / (1 + exp(-x)),
    "mish": lambda x: x * tanh(log1p(exp(x))),
    "tanh": tanh,
    "sigmoid": lambda x: 1 / (1 + exp(-x)),
    "identity": lambda x: x,
}
FLAGS = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "heads": 2, "attn_dim_head": 8, "depth": 2}


def feedforwards(**flags):
    torch.manual_seed(0)
    model = flagformer.build({**FLAGS, **flags})
    return model, [s.fn for s in model.attn_layers.sublayers if s.kind == "f"]


def test_every_name_has_a_formula():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_activation(name):
    _, (forward, _) = feedforwards(ff_activation=name)
    x = torch.linspace(-6, 6, 49, dtype=torch.double)
    want = torch.tensor([FORMULAS[name](one) for one in x.tolist()], dtype=torch.double)
    assert torch.allclose(forward.activation(x), want, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "flag"), [("gelu", {}), ("silu", {"ff_swish": True}), ("relu2", {"ff_relu_squared": True})]
)
def test_names_of_the_other_flags(name, flag):
    ids = torch.randint(11, (2, 5))
    assert torch.equal(feedforwards(ff_activation=name)[0](ids), feedforwards(**flag)[0](ids))


def test_layers_have_activations_of_their_own():
    _, (first, second) = feedforwards(ff_activation=("relu", None))
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(first.activation(x), x.relu())
    assert torch.equal(second.activation(x), torch.nn.functional.gelu(x))


def test_a_name_that_does_not_exist():
    with pytest.raises(flagformer.FlagError, match=r"must be one of 'gelu', .*, but is 'swish'"):
        feedforwards(ff_activation="swish")


def test_routing_models_take_names_and_modules():
    sizes = {"num_tokens": 11, "dim": 16, "heads": 2, "depth": 1, "max_seq_len": 16, "window_size": 8}
    x = torch.linspace(-2, 2, 9)
    for given in ("relu", torch.nn.ReLU):
        model = flagformer.RoutingTransformerLM(**sizes, ff_activation=given)
        forward = next(s.fn for s in model.net.attn_layers.sublayers if s.kind == "f")
        assert torch.equal(forward.activation(x), x.relu())


@pytest.mark.parametrize("gated", [False, True])
def test_inner_width(gated):
    _, (first, second) = feedforwards(ff_inner_dim=(13, None), ff_glu=gated)
    assert [first.w_out.in_features, second.w_out.in_features] == [13, 64]
    assert first.w_in.out_features == (26 if gated else 13)


@pytest.mark.parametrize(("a_p", "a_n"), [(None, None), (0.3, -1.2), (-2.0, 1.5)])
def test_xielu(a_p, a_n):
    """arXiv:2411.13010, section 3: both alphas start at 0.8."""
    activation = XIELU().double()
    for parameter, value in ((activation.alpha_p, a_p), (activation.alpha_n, a_n)):
        parameter.data = parameter.data if value is None else torch.full_like(parameter, value)
    alpha_p = 0.8 if a_p is None else log1p(exp(a_p))
    alpha_n = 0.8 if a_n is None else 0.5 + log1p(exp(a_n))

    def formula(x):
        return alpha_p * x * x + x / 2 if x > 0 else alpha_n * (exp(x) - 1) - alpha_n * x + x / 2

    x = torch.linspace(-6, 6, 49, dtype=torch.double)
    want = torch.tensor([formula(one) for one in x.tolist()], dtype=torch.double)
    # the initial alphas are computed in fp32, and the exponent is at most -1e-6
    assert torch.allclose(activation(x), want, atol=1e-5 if a_p is None else 3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xielu_is_that_of_transformers(dtype):
    activations = pytest.importorskip("transformers.activations")
    ours, theirs = XIELU().to(dtype), activations.XIELUActivation(dtype=dtype)
    ours.load_state_dict({name: theirs.get_parameter(name) for name in ("alpha_p", "alpha_n")})
    x = torch.cat([torch.linspace(-6, 6, 49), torch.tensor([-1e-7, 0.0, 1e-7])]).to(dtype).requires_grad_()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    [got], [want] = (torch.autograd.grad(act(x).sum(), [x]) for act in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_each_feedforward_has_its_own_alphas():
    model, forwards = feedforwards(ff_xielu=True)
    names = {name for name, _ in model.named_parameters() if "alpha" in name}
    assert len(names) == 4
    assert len({id(forward.activation) for forward in forwards}) == 2
    model, (first, second) = feedforwards(ff_xielu=(True, False))
    assert isinstance(first.activation, XIELU)
    assert not isinstance(second.activation, XIELU)

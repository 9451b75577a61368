"""Residual streams and initialisations against their formulas."""

import math

import pytest
import reference_formulas as paper
import torch

import flagformer

D = 6


def stack(**flags):
    """Two perturbed feedforwards in fp64, an input, and their state."""
    torch.manual_seed(5)
    layers = flagformer.Decoder(dim=D, heads=2, custom_layers="ff", ff_mult=1, **flags).double().eval()
    for parameter in layers.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return layers, torch.randn(1, 3, D, dtype=torch.float64), layers.state_dict()


def said(layers, index, x):
    return layers.sublayers[index].fn(x, None).detach()


def norm(gain, x):
    return torch.stack([paper.layer_norm(row, gain) for row in x.flatten(0, -2)]).view_as(x)


@pytest.mark.parametrize("learned", [True, False])
def test_scaled_residual(learned):
    """arXiv:2110.09456, section 2.1 (learned), and 2203.00555, equation 1 (the constant)."""
    layers, x, w = stack(scale_residual_constant=1.5, **({"scale_residual": True} if learned else {}))
    gains = w["residual.weight"] if learned else torch.ones(2, D)
    h = x
    for i in range(2):
        out = said(layers, i, norm(w[f"sublayers.{i}.in_norm.weight"], h))
        h = torch.stack([1.5 * gains[i, d] * h[..., d] + out[..., d] for d in range(D)], dim=-1)
    torch.testing.assert_close(layers(x).detach(), norm(w["final_norm.weight"], h))


def test_gru_gate():
    """arXiv:1910.06764, section 3.2, in the form of torch's GRU."""
    layers, x, w = stack(gate_residual=True)

    def sigmoid(value):
        return 1 / (1 + (-value).exp())

    h = x
    for i in range(2):
        y = said(layers, i, norm(w[f"sublayers.{i}.in_norm.weight"], h))
        of_y = y @ w[f"residual.of_out.{i}.weight"].T + w[f"residual.of_out.{i}.bias"]
        of_h = h @ w[f"residual.of_stream.{i}.weight"].T + w[f"residual.of_stream.{i}.bias"]
        r = sigmoid(of_y[..., :D] + of_h[..., :D])
        z = sigmoid(of_y[..., D : 2 * D] + of_h[..., D : 2 * D])
        n = torch.tanh(of_y[..., 2 * D :] + r * of_h[..., 2 * D :])
        h = z * h + (1 - z) * n
    torch.testing.assert_close(layers(x).detach(), norm(w["final_norm.weight"], h))


def test_gru_gate_is_initialised_near_the_identity():
    gate = flagformer.Decoder(dim=64, heads=2, custom_layers="f", gate_residual=True).residual
    h, zero = torch.randn(1, 50, 64), torch.zeros(1, 50, 64)
    kept = (gate.write(h, zero, 0) * h).sum() / h.square().sum()
    assert kept > 0.75, "sigmoid(2) = 0.88 of the stream passes, up to the random projections"


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_resi_dual(scale):
    """arXiv:2304.14802, equations 5 to 7."""
    layers, x, w = stack(resi_dual=True, resi_dual_scale=scale)
    h, dual = x, scale * x
    for i in range(2):
        out = said(layers, i, h)
        h, dual = norm(w[f"sublayers.{i}.out_norm.weight"], h + out), dual + scale * out
    torch.testing.assert_close(layers(x).detach(), h + norm(w["final_norm.weight"], dual))


@pytest.mark.parametrize("flags", [{}, {"ff_glu": True}])
def test_zero_branches_add_nothing_and_still_learn(flags):
    """arXiv:1901.09321, section 3: the stack starts as the identity."""
    layers = flagformer.Decoder(dim=D, depth=2, heads=2, zero_init_branch_output=True, **flags)
    x = torch.randn(1, 3, D)
    out = layers(x)
    torch.testing.assert_close(out, layers.final_norm(x))
    (out * torch.randn_like(out)).sum().backward()
    lasts = [s.fn.w_out if s.kind == "f" else s.fn.to_out for s in layers.sublayers]
    assert all(last.weight.grad.abs().max() > 0 for last in lasts)


def test_initialisation_scaled_by_depth():
    torch.manual_seed(0)
    layers = flagformer.Decoder(dim=128, depth=2, heads=2, depth_scale_residual=True)
    for index, sublayer in enumerate(layers.sublayers, start=1):
        last = sublayer.fn.w_out if sublayer.kind == "f" else sublayer.fn.to_out
        want = 1 / math.sqrt(index * last.in_features)
        # 16 thousand samples and more: the standard deviation is known to 0.6 %
        assert last.weight.detach().std().item() == pytest.approx(want, rel=0.03)

"""RGLRU against its formula, and against RecurrentGemma of transformers 5.24."""

import pytest
import torch
import torch.nn.functional as F

from flagformer.flow import Dims
from flagformer.mixer import BlockTokens
from flagformer.mixer.rglru import RGLRU

DIMS = Dims(dim=6, heads=2, dim_head=4, causal=True)


def perturbed(mixer):
    for parameter in mixer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return mixer


def read(mixer, x, blocks=None, valid=None):
    """The outputs of consecutive blocks."""
    state, outputs = mixer.initial_state(x.shape[0], x.dtype, x.device), []
    blocks = blocks or [x.shape[1]]
    masks = [None] * len(blocks) if valid is None else valid.split(blocks, 1)
    for block, mask in zip(x.split(blocks, 1), masks):
        out, state = mixer.mix(block, BlockTokens(mask), state)
        outputs.append(out)
    return torch.cat(outputs, 1), state


@torch.no_grad()
def test_formula():
    """Token by token and dimension by dimension, as in section 2.4; the first token is not scaled."""
    torch.manual_seed(0)
    mixer = perturbed(RGLRU(DIMS, kernel=3)).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    u, weight = mixer.to_inner(x), mixer.convolution.weight
    want = torch.zeros(2, 9, 8, dtype=torch.float64)
    for row in range(2):
        h = torch.zeros(8, dtype=torch.float64)
        for t in range(9):
            c = mixer.convolution.bias.clone()
            for back in range(min(3, t + 1)):
                c += weight[:, 2 - back] * u[row, t - back]
            for j in range(8):
                head, own = j // 4, slice(4 * (j // 4), 4 * (j // 4) + 4)
                r, i = (
                    torch.sigmoid(c[own] @ gate.weight[head, :, j % 4] + gate.bias[head, j % 4])
                    for gate in (mixer.recurrence_gate, mixer.input_gate)
                )
                a = torch.sigmoid(-mixer.decay.rate[j]) ** (8 * r)
                h[j] = a * h[j] + (1 if t == 0 else (1 - a**2).sqrt()) * i * c[j]
            want[row, t] = h
    gate = F.gelu(mixer.to_gate(x), approximate="tanh")
    out, state = read(mixer, x)
    torch.testing.assert_close(out, mixer.w_out(want * gate), rtol=0, atol=1e-12)
    torch.testing.assert_close(state["state"], want[:, -1], rtol=0, atol=1e-12)


def test_initial_factors_are_those_of_the_paper():
    rate = RGLRU(Dims(dim=6, heads=100, dim_head=40, causal=True)).decay.rate
    factor = torch.sigmoid(-rate) ** 8
    assert 0.9 - 1e-4 < factor.min() < 0.901
    assert 0.998 < factor.max() < 0.999 + 1e-4
    assert abs(factor.mean() - 0.9495) < 0.002


def test_gradients_are_finite_where_the_state_keeps_all():
    """A gate of almost 0, where the derivative of the root is infinite, and padding."""
    mixer = RGLRU(DIMS)
    mixer.recurrence_gate.bias.data.fill_(-200)
    x = torch.randn(2, 9, 6, requires_grad=True)
    valid = torch.arange(9) >= torch.tensor([[0], [4]])
    read(mixer, x, valid=valid)[0][valid].sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *mixer.parameters()])


def published():
    """Their block and ours with the same weights."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaModel

    config = transformers.RecurrentGemmaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        lru_width=32, conv1d_width=4, block_types=["recurrent"],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = perturbed(RecurrentGemmaModel(config).eval().layers[0].temporal_block)
    ours = RGLRU(Dims(dim=32, heads=4, dim_head=8, causal=True))
    lru = theirs.rg_lru
    ours.load_state_dict({
        "to_gate.weight": theirs.linear_y.weight, "to_gate.bias": theirs.linear_y.bias,
        "to_inner.weight": theirs.linear_x.weight, "to_inner.bias": theirs.linear_x.bias,
        "convolution.weight": theirs.conv_1d.weight[:, 0], "convolution.bias": theirs.conv_1d.bias,
        "input_gate.weight": lru.input_gate_weight, "input_gate.bias": lru.input_gate_bias,
        "recurrence_gate.weight": lru.recurrent_gate_weight, "recurrence_gate.bias": lru.recurrent_gate_bias,
        "decay.rate": lru.recurrent_param, "w_out.weight": theirs.linear_out.weight,
        "w_out.bias": theirs.linear_out.bias,
    })  # fmt: skip
    return theirs, ours


def positions(start, stop):
    return torch.arange(start, stop)[None].expand(2, -1)


@torch.no_grad()
def test_equal_to_the_published_class():
    """Whole, and a prompt followed by single tokens."""
    theirs, ours = published()
    x = torch.randn(2, 40, 32)
    want = theirs(x, positions(0, 40), None, use_cache=False)[0]
    assert want.std() > 0.1
    for blocks in ([40], [1] * 40, [17, 1, 22]):
        torch.testing.assert_close(read(ours, x, blocks)[0], want, rtol=1e-5, atol=1e-5)
    theirs._setup_cache(2, "cpu", torch.float32)
    steps = [theirs(x[:, :17], positions(0, 17), None)[0]]
    steps += [theirs(x[:, t : t + 1], positions(t, t + 1), None)[0] for t in range(17, 40)]
    torch.testing.assert_close(torch.cat(steps, 1), want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_where_the_published_class_departs_from_the_definition():
    """Blocks of several tokens after a prompt lose the inputs of its convolution; padding is read."""
    theirs, ours = published()
    x = torch.randn(2, 40, 32)
    want = theirs(x, positions(0, 40), None, use_cache=False)[0]
    theirs._setup_cache(2, "cpu", torch.float32)
    theirs(x[:, :17], positions(0, 17), None)
    block = theirs(x[:, 17:], positions(17, 40), None)[0]
    assert (block - want[:, 17:]).abs().max() > 1e-3
    valid = torch.arange(40) >= torch.tensor([[0], [9]])
    alone = theirs(x[1:, 9:], positions(0, 31)[:1], None, use_cache=False)[0]
    torch.testing.assert_close(read(ours, x, valid=valid)[0][1:, 9:], alone, rtol=1e-5, atol=1e-5)
    padded = torch.stack([torch.arange(40), (torch.arange(40) - 9).clamp(min=1)])
    left = theirs(x, padded, None, use_cache=False)[0]
    assert (left[1:, 9:] - alone).abs().max() > 1e-3

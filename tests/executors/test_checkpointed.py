"""Checkpointing recomputes the forward: all numbers are the same, and no loss or token counts twice."""

import pytest
import torch
from executor_models import DROPS, SIZES, busy_decoder, inputs, trained

from flagformer import Decoder
from flagformer.flow import OutputCollector

UNITS = ("sublayer", "selective")


def decoder(**flags):
    torch.manual_seed(4)
    return Decoder(**{**SIZES, **flags})


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16 autocast"])
def test_losses_and_statistics_count_once(unit, autocast):
    found = []
    for extra in ({"checkpoint": unit}, {}):
        layers = busy_decoder(reversible=False, **extra)
        found.append((*trained(layers, torch.float32, autocast), layers))
    (out, grads, draws, layers), (wanted_out, wanted, wanted_draws, reference) = found
    assert torch.equal(out, wanted_out)
    assert torch.equal(draws, wanted_draws)
    assert all(torch.equal(one, other) for one, other in zip(grads, wanted))
    busy = [s.fn for s in layers.sublayers if s.kind == "f"]
    assert [one.counted for one in busy] == [1] * len(busy)
    assert all(torch.equal(one.seen, two.fn.seen) for one, two in zip(busy, reference.sublayers[1::2]))
    collector = OutputCollector()
    layers(*inputs(layers, torch.float32), collector=collector).sum().backward()
    assert [len(values) for values in collector.losses.values()] == [3, 3]


def kept(layers, length):
    """Bytes saved for the backward of one forward, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in layers.parameters()}
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(2, length, layers.dim, requires_grad=True)
    before = torch.zeros(())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layers(x)
    assert out.requires_grad
    assert not before.requires_grad
    return sum(size for place, size in seen.items() if place not in own)


def test_selective_saves_projections_only():
    """Counted in the recomputation: the costly operators run once, all others twice."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = {}

        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            name = operator.overloadpacket.__name__
            self.calls[name] = self.calls.get(name, 0) + 1
            return operator(*arguments, **(keywords or {}))

    calls = {}
    for unit in (None, *UNITS):
        layers = decoder(checkpoint=unit, use_rmsnorm=True)
        out = layers(*inputs(layers, torch.float32))
        with Count() as count:
            out.sum().backward()
        calls[unit] = count.calls
    for name in ("addmm", "_scaled_dot_product_flash_attention_for_cpu"):
        assert calls["selective"].get(name, 0) == calls[None].get(name, 0), f"{name} is not recomputed"
        assert calls["sublayer"][name] > calls[None].get(name, 0)
    assert calls["selective"]["gelu"] == calls["sublayer"]["gelu"] == 3
    assert "gelu" not in calls[None]


def test_long_inputs_compute_relative_bias_once():
    """Attention with a relative bias table is one of the costly operators."""
    layers = decoder(checkpoint="selective", alibi_pos_bias=True, depth=1)
    reference = decoder(alibi_pos_bias=True, depth=1)
    _, grads, _ = trained(layers, torch.float32, length=300)
    _, wanted, _ = trained(reference, torch.float32, length=300)
    assert all(torch.equal(one, other) for one, other in zip(grads, wanted))


@pytest.mark.parametrize("unit", UNITS)
def test_whole_models_compile_with_gradients(unit):
    torch._dynamo.reset()
    layers = decoder(checkpoint=unit).double()
    _, wanted, _ = trained(decoder().double(), torch.float64)
    compiled = torch.compile(layers, backend="aot_eager")
    (x,) = inputs(layers, torch.float64)
    out = compiled(x)
    (out * out.detach().cos()).sum().backward()
    for one, other in zip([x.grad, *(p.grad for p in layers.parameters())], wanted):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_feedforward_in_chunks_saves_less():
    sizes = {c: kept(decoder(ff_chunks=c, ff_mult=8.0, depth=1), 64) for c in (1, 8)}
    assert sizes[8] < 0.5 * sizes[1]


@pytest.mark.parametrize("extra", [{}, {"checkpoint": "sublayer"}, {"checkpoint": "selective"}], ids=str)
@pytest.mark.parametrize("form", [{}, {"ff_glu": True, "ff_post_act_ln": True}], ids=["dense", "glu"])
def test_feedforward_in_chunks_is_the_same_function(extra, form):
    """More chunks than tokens are clamped to the number of tokens; dropout draws once for each."""
    whole = decoder(**form).double()
    _, wanted, _ = trained(whole, torch.float64)
    for chunks in (2, 3, 100):
        _, grads, _ = trained(decoder(ff_chunks=chunks, **form, **extra).double(), torch.float64)
        for one, other in zip(grads, wanted):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    noisy = [
        trained(decoder(ff_chunks=3, **DROPS, **form, **more).double(), torch.float64) for more in (extra, {})
    ]
    for one, other in zip(noisy[0][1], noisy[1][1]):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

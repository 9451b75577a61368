"""Weight-only quantised layers in place of linears and embeddings: each setting runs, and equals the same
model with the dequantised weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from property_subject import TIGHT, same
from test_properties_adapters import SUBJECTS, answers, found, model_of
from test_properties_linears import LAYERS, subject_of, trained, used
from test_properties_singles import SINGLES, together
from torch import nn

LEVELS = 127


class Int8(nn.Module):
    """int8 rows with a scale for each output (or token), as bitsandbytes and torchao store them."""

    def __init__(self, base):
        super().__init__()
        weight, bias = base.weight.detach(), getattr(base, "bias", None)
        scale = weight.abs().amax(dim=1, keepdim=True) / LEVELS
        self.looks_up = isinstance(base, nn.Embedding)
        self.keep("weight", (weight / scale).round().to(torch.int8))
        self.keep("scale", scale)
        self.keep("bias", None if bias is None else bias.detach().clone())

    def keep(self, name, value):
        self.register_parameter(name, None if value is None else nn.Parameter(value, requires_grad=False))

    def dequantised(self):
        return self.weight * self.scale

    def forward(self, x):
        if self.looks_up:
            return F.embedding(x, self.dequantised())
        return F.linear(x, self.dequantised(), self.bias)


class Int8Buffers(Int8):
    """The same without any parameter."""

    def keep(self, name, value):
        self.register_buffer(name, value)


def quantised(model, kind):
    """Replace every layer of the model; a copy has the dequantised weights of the new layers."""
    plain = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LAYERS):
            parent, _, leaf = name.rpartition(".")
            new = kind(layer)
            setattr(model.get_submodule(parent), leaf, new)
            plain.get_submodule(name).weight.data.copy_(new.dequantised())
    return plain


def equal(got, want):
    """Without gradients of the replaced layers, which have none."""
    for name in got.keys() & want.keys():
        if got[name] is not None and want[name] is not None:
            value = want[name].double()
            same(got[name].double(), value, name, TIGHT * max(1, value.abs().max().item()))


def compare(flags, kind):
    subject = subject_of(flags)
    plain = quantised(subject.model, kind)
    equal(used(subject, subject.model), used(subject, plain))
    got, want = trained(subject, subject.model), trained(subject, plain)
    assert (got["the gradient of x"] is None) == (want["the gradient of x"] is None)
    equal(got, want)


@pytest.mark.parametrize("part", range(2))
def test_every_setting_runs_with_quantised_layers(part):
    """Several settings in one model, if they can be combined."""
    for names, flags in together()[part::2]:
        try:
            compare(flags, Int8Buffers)
        except Exception as error:
            raise AssertionError(", ".join(names)) from error


@pytest.mark.parametrize("kind", [Int8, Int8Buffers])
@pytest.mark.parametrize("name", ["nothing", "use_simple_rmsnorm", "dynamic_pos_bias", "tie_embedding"])
def test_a_model_of_quantised_layers_only(name, kind):
    """No other parameter has the model's device and dtype."""
    compare(SINGLES[name], kind)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_kind_of_model_runs_with_quantised_layers(name):
    model = model_of(name)
    plain = quantised(model, Int8Buffers)
    equal(found(name, model), found(name, plain))


@pytest.mark.parametrize("kind", [Int8, Int8Buffers])
def test_layers_sum_in_the_precision_of_the_scales_under_autocast(kind):
    """The dtype of integer weights is not the compute dtype."""
    layers = model_of("decoder, context", torch.float32).attn_layers
    plain = quantised(layers, kind)
    x = torch.randn(2, 5, 16).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, want = layers(x, context=x), plain(x, context=x)
    assert got.dtype == want.dtype == torch.float32
    same(got, want, "output", 0)


def calls_of(name, model, layers):
    """The layers called in any use of the model."""
    called = set()
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(lambda *_, name=layer: called.add(name))
    with torch.no_grad():
        assert answers(name, model)["loss"].isfinite()
    return called


@pytest.mark.parametrize("name", SUBJECTS)
def test_dynamic_quantisation_leaves_no_layer_uncalled(name, tmp_path):
    """`quantize_dynamic` replaces each plain `nn.Linear`: the same layers are called as before."""
    if not set(torch.backends.quantized.supported_engines) - {"none"}:
        pytest.skip("this build of torch has no engine for quantised products")
    model = model_of(name, torch.float32)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    replaced = [n for n, one in model.named_modules() if type(one) is nn.Linear]
    assert replaced
    assert not any(type(small.get_submodule(part)) is nn.Linear for part in replaced)
    assert calls_of(name, model, replaced) == calls_of(name, small, replaced)
    if name == "decoder":  # both classes are called Linear
        text = "is a torch.*quantized.*, but a torch.nn.modules.linear.Linear by its flags"
        with pytest.raises(ValueError, match=text):
            small.save(tmp_path)

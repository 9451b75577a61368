"""Linears and embeddings are called, and their weights never read directly: adapters and hooks act always."""

import copy

import pytest
import torch
import torch.nn.functional as F
from property_settings import TINY, one_block
from property_subject import TIGHT, Subject, differ, refusal, same
from test_properties_singles import PARTS, SINGLES, together
from torch import nn

from flagformer import AutoregressiveWrapper

LAYERS = (nn.Linear, nn.Embedding)
RANK, SCALE = 2, 1.3
PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]


class Adapter(nn.Module):
    """base(x) + B A x, as PEFT adds it to `nn.Linear` and to `nn.Embedding`; has only a forward."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        out, width = base.weight.shape  # of an embedding V, E
        looks_up = isinstance(base, nn.Embedding)
        sizes = (out, width) if looks_up else (width, out)
        self.looks_up, kind = looks_up, {"dtype": base.weight.dtype}
        self.a = nn.Parameter(0.3 * torch.randn(sizes[0], RANK, **kind))
        self.b = nn.Parameter(0.3 * torch.randn(RANK, sizes[1], **kind))

    def forward(self, x):
        low = F.embedding(x, self.a) if self.looks_up else x @ self.a
        return self.base(x) + low @ self.b

    def delta(self):
        whole = (self.a @ self.b).detach()
        return whole if self.looks_up else whole.T


class ShowingAdapter(Adapter):
    """The same with the attributes of the wrapped layer, as PEFT's layers have them."""

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)
    in_features = property(lambda self: self.base.in_features)
    out_features = property(lambda self: self.base.out_features)


def adapted(model, kind):
    """The merged weights: every layer of the model is wrapped, those of a copy have the sum."""
    merged = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LAYERS):
            parent, _, leaf = name.rpartition(".")
            wrapped = kind(layer)
            setattr(model.get_submodule(parent), leaf, wrapped)
            merged.get_submodule(name).weight.data += wrapped.delta()
    return merged


def hooked(model):
    """The scaled weights: hooks scale the output of some layers, the input of others."""
    merged = copy.deepcopy(model)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    for number, (name, layer) in enumerate(layers):
        other, of_input = merged.get_submodule(name), number % 2 and isinstance(layer, nn.Linear)
        other.weight.data *= SCALE
        if of_input:
            layer.register_forward_pre_hook(lambda _, given: (given[0] * SCALE,))
            continue
        layer.register_forward_hook(lambda _, given, out: out * SCALE)
        if getattr(other, "bias", None) is not None:
            other.bias.data *= SCALE
    return merged


CHANGES = {
    "adapter": lambda model: adapted(model, Adapter),
    "adapter that shows its base": lambda model: adapted(model, ShowingAdapter),
    "hook": hooked,
}


def subject_of(chosen):
    flags = one_block({**chosen, **TINY, "model": "decoder"})
    if refusal({**flags, "max_mem_len": 16}) is None and not flags.get("num_memory_slots"):
        flags["max_mem_len"] = 16
    return Subject(flags)


def trained(subject, model, chunks=None):
    """The loss of a training forward, and gradients of the parameters outside the layers, by name."""
    model.train().zero_grad()
    torch.manual_seed(3)
    side = subject.side(0, 1)
    length = subject.ids.shape[1] if chunks is None else 1
    x = torch.randn(2, length, model.embedding.width, dtype=subject.dtype, requires_grad=True)
    if chunks is None:
        logits = model(subject.ids, sum_embeds=x, **side)
        loss = (
            logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits).cos()
        ).sum()
    else:
        read = model.attn_layers.has_self and not model.num_memory_slots
        front = {"prepend_embeds": x} if read else {}
        loss = AutoregressiveWrapper(model, loss_chunks=chunks)(subject.ids, **front, **side)
    loss.backward()
    layers = [layer for layer in model.modules() if isinstance(layer, (*LAYERS, Adapter))]
    in_layers = {id(p) for layer in layers for p in layer.parameters()}
    grads = {name: p.grad for name, p in model.named_parameters() if id(p) not in in_layers}
    model.eval()
    return {"loss": loss.detach(), "the gradient of x": x.grad, **grads}


def segments(subject, model):
    """Logits of a text in segments."""
    pieces, mems = [], None
    for part in subject.ids.split((4, 1, 4), dim=1):
        logits, mems = model(part, mems=mems, return_mems=True, **subject.side(0, 1))
        pieces.append(logits)
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def used(subject, model):
    """Outputs in eval mode, in every kind of call."""
    logits = model(subject.ids, **subject.side(0, 1))
    found = {"logits": logits}
    if model.max_mem_len or model.num_memory_slots:
        found["segments"] = segments(subject, model)
        if not model.absolute_positions and not subject.has_cross:
            stream = model.stream(2)
            found["stream"] = torch.cat([stream(part) for part in subject.ids.split((3, 1, 5), dim=1)], dim=1)
    if logits.shape[-1] == model.num_tokens and "return_only_embed" not in subject.flags:
        keywords = {"seq_len": 6, "temperature": 0, **subject.side(0, 1)}
        found["generation"] = AutoregressiveWrapper(model).generate(PROMPTS, **keywords)
    return found


def compare(subject, change):
    model = subject.model
    before = subject(subject.ids)
    merged = change(model)
    differ(subject(subject.ids), before, "logits of the changed model")
    got, want = used(subject, model), used(subject, merged)
    learned = "return_only_embed" not in subject.flags and "logits_dim" not in subject.flags
    for chunks in (None, 3) if learned else (None,):
        kind = "in training" if chunks is None else "under `loss_chunks`"
        got |= {f"{name} {kind}": value for name, value in trained(subject, model, chunks).items()}
        want |= {f"{name} {kind}": value for name, value in trained(subject, merged, chunks).items()}
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert (value is None) == (got[name] is None), name
        if value is not None:
            same(got[name], value, name, TIGHT * max(1, value.abs().max().item()))


def pytest_generate_tests(metafunc):
    if "alone" in metafunc.fixturenames:
        metafunc.parametrize("alone", SINGLES if metafunc.config.getoption("matrix") else ["nothing"])


def test_an_adapter_acts_in_a_setting(alone):
    """In `make matrix` in each setting by itself."""
    compare(subject_of(SINGLES[alone]), CHANGES["adapter"])


@pytest.mark.parametrize("change", ["adapter", "hook"])
@pytest.mark.parametrize("part", range(PARTS))
def test_a_change_acts_in_every_setting(part, change):
    """Several settings in one model, if they can be combined."""
    for names, flags in together()[part::PARTS]:
        try:
            compare(subject_of(flags), CHANGES[change])
        except Exception as error:
            raise AssertionError(", ".join(names)) from error


@pytest.mark.parametrize("name", ["nothing", "tie_embedding", "attn_on_attn", "dynamic_pos_bias"])
def test_an_adapter_with_the_attributes_of_its_base(name):
    compare(subject_of(SINGLES[name]), CHANGES["adapter that shows its base"])

"""Whole models under export, compilation and transforms of `torch.func`: what the properties test of single
stacks, for the wrappers around them."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

import flagformer
from commit_sample import part_of
from flagformer.models.build import ROUTING, WHOLE

STACK = {"num_tokens": 11, "max_seq_len": 16, "depth": 1, "heads": 2}
HALVES = {"dim": 16} | {f"{half}_{name}": value for half in ("enc", "dec") for name, value in STACK.items()}
WINDOWS = {"enc_window_size": 4, "dec_window_size": 4}
LAYERS = {"dim": 16, "depth": 1, "heads": 2}
KINDS = {
    "xtransformer": HALVES,
    "memformer": {**HALVES, "num_memory_slots": 2},
    "vit": {**LAYERS, "image_size": 8, "patch_size": 4, "num_classes": 3},
    "classifier": {**STACK, "dim": 16, "num_classes": 3, "pooling": "class"},
    "continuous": {**LAYERS, "dim_in": 3, "dim_out": 2, "max_seq_len": 16, "causal": True},
    "routing_lm": {**STACK, "dim": 16, "window_size": 4, "n_local_attn_heads": 1, "causal": True},
    "routing_encdec": {**HALVES, **WINDOWS},
}
PAIRS = {"xtransformer", "memformer", "routing_encdec"}
ROUNDING = 1e-10  # fp64 sums of magnitude about 1


class Answer(torch.nn.Module):
    """A model with one tensor as its result: logits, of `memformer` those of the target."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.model = flagformer.build({"model": kind, **KINDS[kind]}).double().eval()
        self.how = {"return_logits": True} if kind == "memformer" else {}

    def forward(self, *inputs):
        found = self.model(*inputs, **self.how)
        if self.how:
            (_, slots, logits), _ = found
            return torch.cat([logits.flatten(1), slots.flatten(1)], dim=1)
        return found[0] if isinstance(found, tuple) else found


def inputs_of(kind, rows=2, length=8):
    generator = torch.Generator().manual_seed(rows)
    if kind == "vit":
        return (torch.randn(rows, 3, 8, 8, generator=generator).double(),)
    if kind == "continuous":
        return (torch.randn(rows, length, 3, generator=generator).double(),)
    shapes = [(rows, length)] * (1 + (kind in PAIRS))
    return tuple(torch.randint(1, 11, shape, generator=generator) for shape in shapes)


def test_every_whole_model_is_here():
    assert set(KINDS) == {*WHOLE, *ROUTING}


@torch.no_grad()
@pytest.mark.parametrize("kind", part_of(KINDS, 2))
def test_one_program_for_all_rows_and_lengths(kind):
    net, inputs = Answer(kind), inputs_of(kind)
    rows, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC(min=2, max=16)
    sizes = tuple({0: rows} if kind == "vit" else {0: rows, 1: length} for _ in inputs)
    program = torch.export.export(net, inputs, dynamic_shapes=(sizes,), strict=False).module()
    for shape in ((2, 8), (3, 5), (1, 16)):
        given = inputs_of(kind, *shape)
        torch.testing.assert_close(program(*given), net(*given), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", part_of(KINDS, 2))
def test_one_graph_with_the_gradients_of_eager_training(kind):
    net, inputs = Answer(kind), inputs_of(kind)
    torch._dynamo.reset()
    found = []
    for form in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        answer = form(*inputs)
        found.append([answer, *torch.autograd.grad(answer.cos().sum(), list(net.parameters()))])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients(kind):
    net, inputs = Answer(kind), inputs_of(kind)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def loss(weights, *row):
        return functional_call(net, (weights, buffers), tuple(one[None] for one in row)).cos().sum()

    got = vmap(grad(loss), (None, *(0 for _ in inputs)))(weights, *inputs)
    for row in (0, 1):
        answer = net(*(one[row : row + 1] for one in inputs)).cos().sum()
        wanted = torch.autograd.grad(answer, list(net.parameters()))
        torch.testing.assert_close([got[name][row] for name in weights], list(wanted), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_ensembles(kind):
    nets, inputs = [Answer(kind)], inputs_of(kind)
    nets.append(copy.deepcopy(nets[0]))
    with torch.no_grad():
        for p in nets[1].parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    weights, buffers = stack_module_state(nets)
    got = vmap(lambda *state: functional_call(nets[0], state, inputs))(weights, buffers)
    for answer, net in zip(got, nets):
        torch.testing.assert_close(answer, net(*inputs), rtol=0, atol=ROUNDING)

"""Attention with a relative bias table equals the dense form for every mask."""

import pytest
import torch
from property_subject import differ, same

from flagformer.attention.kernels.eager import Eager
from flagformer.attention.kernels.relative_bias import capability, reference
from flagformer.attention.kernels.relative_bias.capability import is_tested
from flagformer.attention.kernels.relative_bias.operators import by_distance
from flagformer.attention.kernels.relative_bias.table import CHUNKS, head_groups
from flagformer.attention.kernels.sdpa import SDPA, SDPATrainableBias
from flagformer.attention.scores import ScorePipeline
from flagformer.flow import (
    AttentionBias,
    Causal,
    DenseMask,
    Dims,
    Layout,
    PrefixLM,
    RelativeRange,
    Window,
)
from flagformer.ops import lengths
from flagformer.ops.lengths import LONG_TABLE
from flagformer.score.softmax import Softmax

CHUNK = CHUNKS[1]
B, H, K, T = 2, 4, 8, 2 * CHUNK + 22  # two whole chunks and a part of one
CPU = torch.device("cpu")
PLAIN = Layout.arange(T, CPU)
RIGHT = PLAIN.masked_by(torch.tensor([[T], [T - 40]]) > torch.arange(T))
LEFT = Layout.left_padded(torch.tensor([0, CHUNK + 6]), T)
PACKED = Layout.packed(torch.tensor([[70, 60, 20], [30, 90, 0]]), T)

# name -> (rules, queries, keys); padding and segments are rules by their layouts
MASKS = {
    "every pair": ((), PLAIN, PLAIN),
    "causal": ((Causal(),), PLAIN, PLAIN),
    "a chunk of queries": ((Causal(),), Layout.arange(T - 55, CPU, 55), PLAIN),
    "window": ((Causal(), Window(29)), PLAIN, PLAIN),
    "window over all that follow": ((Window(29),), PLAIN, PLAIN),
    "right padding": ((Causal(),), RIGHT, RIGHT),
    "left padding": ((Causal(),), LEFT, LEFT),
    "packed": ((Causal(),), PACKED, PACKED),
    "packed, every pair": ((), PACKED, PACKED),
}


def inputs(case, groups, same_from, dtype):
    """q, k, v, and a table in which distances from `same_from` on share their bias."""
    _, queries, keys = MASKS[case]
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    kv = [draw(B, groups, keys.length, K) for _ in range(2)]
    return draw(B, H, queries.length, K), *kv, draw(2 * T if same_from is None else T + same_from, H)


class TableBias:
    """A position bias from `biases`: distances [...] -> [..., H]."""

    def __init__(self, biases, same_from):
        self.biases, self.saturation_distance = biases, same_from

    def between(self, queries, keys):
        distance = queries.cache_positions()[:, None] - keys.cache_positions()
        return self.biases(distance).permute(2, 0, 1)[None]

    def relative_table(self, nearest, farthest, device):
        return self.biases(torch.arange(nearest, farthest + 1)).t()


def bias_of(case, table, same_from):
    rules, queries, keys = MASKS[case]
    last = T if same_from is None else same_from
    own = TableBias(lambda distance: table[distance.clamp(max=last) + T - 1], same_from)
    return AttentionBias(rules, own, queries, keys).narrowed()


@pytest.fixture
def by_distance_at_any_length(monkeypatch):
    monkeypatch.setattr(lengths, "LONG", 1)


def pipeline():
    return ScorePipeline(0.4, [], Softmax(Dims(dim=16, heads=H, dim_head=K)))


def gradients(kernel, tensors, bias):
    assert isinstance(kernel, Eager) or getattr(kernel, "fused", kernel).reads_relative(bias, CPU)
    out = kernel(*tensors[:3], bias)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)]


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("same_from", [None, 20])
@pytest.mark.parametrize("groups", [H, 2])
@pytest.mark.usefixtures("by_distance_at_any_length")
def test_a_learned_table_equals_the_dense_form(case, same_from, groups):
    tensors = inputs(case, groups, same_from, torch.float64)
    bias = bias_of(case, tensors[3], same_from)
    got = gradients(SDPATrainableBias(pipeline()), tensors, bias)
    want = gradients(Eager(pipeline()), tensors, bias)
    for name, one, other in zip(("out", "dq", "dk", "dv", "dtable"), got, want):
        same(one, other, name, tolerance=1e-11)  # fp64: sums of up to B * T * T numbers near 1
    differ(want[4], torch.zeros_like(want[4]), "the table's gradient")


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.usefixtures("by_distance_at_any_length")
def test_a_fixed_table_equals_the_dense_form(case, dtype, tolerance):
    tensors = inputs(case, 1, None, dtype)
    bias = bias_of(case, tensors[3].detach(), None)
    got = gradients(SDPA(pipeline()), tensors[:3], bias)
    want = gradients(Eager(pipeline()), tensors[:3], bias)
    for name, one, other in zip(("out", "dq", "dk", "dv"), got, want):
        same(one, other, name, tolerance)


def test_queries_without_keys_give_zeros_and_get_no_gradient():
    tensors = inputs("left padding", H, 20, torch.float64)
    out, dq, dk, dv, dtable = gradients(
        SDPATrainableBias(pipeline()), tensors, bias_of("left padding", tensors[3], 20)
    )
    blind = ~LEFT.valid[1]
    for tensor in (out, dq, dk, dv):
        assert (tensor[1][:, blind] == 0).all()
        assert (tensor[1][:, ~blind] != 0).any()
        assert tensor.isfinite().all()
    assert dtable.isfinite().all()


@pytest.mark.parametrize("same_from", [-1, 2])
def test_gradcheck(same_from):
    generator = torch.Generator().manual_seed(6)
    long, width = CHUNK + 3, 2
    q, k, v = (
        torch.randn(1, 1, long, width, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    )
    near = torch.randn(1, 3, generator=generator, dtype=torch.float64).requires_grad_()

    def run(q, k, v, near):
        biases = torch.cat([near[:, :2], near[:, 2:].expand(1, long - 2)], dim=1)
        return by_distance(q, k, v, biases, None, RelativeRange(0, 0, same_from), 0.7)[0]

    assert torch.autograd.gradcheck(run, (q, k, v, near))


@pytest.mark.parametrize("learned", [True, False])
def test_opcheck_of_the_operators(learned):
    """Fake shapes, gradients, no mutated input."""
    q, k, v, _ = inputs("a chunk of queries", H, None, torch.float64)
    biases = torch.linspace(0, -2, 2 * T, dtype=torch.float64).expand(H, -1).clone().requires_grad_(learned)
    torch.library.opcheck(by_distance, (q, k, v, biases, None, list(RelativeRange(55, 0, -1)), 0.7))


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("same_from", [None, 20])
@pytest.mark.usefixtures("by_distance_at_any_length")
def test_the_operators_equal_the_reference(case, same_from):
    *qkv, table = inputs(case, H, same_from, torch.float64)
    relative = bias_of(case, table, same_from).relative()
    found = []
    for attend in (lambda *given: by_distance(*given)[0], reference.attend):
        out = attend(*qkv, *relative, 0.4)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
        grads = torch.autograd.grad((out * weights).sum(), (*qkv, table), retain_graph=True)
        found.append([out.detach(), *grads])
    for name, one, other in zip(("out", "dq", "dk", "dv", "dtable"), *found):
        same(one, other, name, tolerance=1e-11)


@pytest.mark.parametrize(
    ("rules", "queries"),
    [
        ((Causal(), DenseMask(torch.ones(1, 1, T, T, dtype=torch.bool))), PLAIN),
        ((PrefixLM(torch.tensor([3])),), PLAIN),
        ((Causal(),), Layout(PLAIN.positions * 2, contiguous_positions=False)),
    ],
)
def test_other_biases_are_dense(rules, queries):
    own = TableBias(lambda distance: torch.zeros(*distance.shape, H), None)
    assert AttentionBias(rules, own, queries, queries).narrowed().relative() is None


STEEP = torch.tensor([0.5, 0.25, 2.0**-5, 2.0**-8, 0.25])  # one head out of order
LENGTH = LONG_TABLE + 70
LAYOUT = Layout.arange(LENGTH, CPU)
SHORT = LAYOUT.masked_by(torch.tensor([[LENGTH], [LENGTH - 300]]) > torch.arange(LENGTH))
FAR = {
    "causal": ((Causal(),), LAYOUT),
    "every pair": ((), LAYOUT),
    "right padding": ((Causal(),), SHORT),
    "window": ((Causal(), Window(499)), LAYOUT),
}


def steep(case, dtype):
    """q, k and v of one row beyond the chunk size, and the bias of the slopes."""
    rules, layout = FAR[case]
    generator = torch.Generator().manual_seed(8)
    qkv = [torch.randn(2, len(STEEP), LENGTH, K, generator=generator, dtype=dtype) for _ in range(3)]
    own = TableBias(lambda distance: -STEEP.to(dtype) * distance.abs()[..., None], None)
    return [x.requires_grad_() for x in qkv], AttentionBias(rules, own, layout, layout).narrowed()


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_underflowed_weights_do_not_change_the_result(case, dtype, tolerance):
    qkv, bias = steep(case, dtype)
    pipeline = ScorePipeline(0.4, [], Softmax(Dims(dim=40, heads=len(STEEP), dim_head=K)))
    valid = FAR[case][1].valid
    found = []
    assert SDPA(pipeline).reads_relative(bias, CPU)
    for kernel in (SDPA(pipeline), Eager(pipeline)):
        out = kernel(*qkv, bias)
        if valid is not None:  # outputs at padding are undefined
            out = out * valid[:, None, :, None]
        weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out).sin()
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), qkv)])
    for name, one, other in zip(("out", "dq", "dk", "dv"), *found):
        same(one, other, name, tolerance)


@pytest.mark.parametrize("case", FAR)
def test_a_steep_head_reads_its_neighbourhood_only(case):
    (q, k, _), bias = steep(case, torch.float32)
    strips = list(head_groups(q, k, *bias.relative(), 0.4))
    assert [number for strip in strips for number in range(len(STEEP))[strip.heads]] == list(
        range(len(STEEP))
    )
    steepest = strips[0].table.biases[0]
    kept = steepest[steepest > float("-inf")]
    assert len(kept) < 400
    assert kept.min() > -100  # no weight of it is a denormal number


def test_a_bias_below_the_score_bound_is_kept():
    """Long queries and keys can outweigh a bias: then it is not pruned."""
    (q, k, _), bias = steep("causal", torch.float32)
    strips = list(head_groups(100 * q, k, *bias.relative(), 0.4))
    assert [strip.distances for strip in strips] == [slice(0, LENGTH)]


@pytest.mark.parametrize(
    ("version", "tested"), [("2.13.1+cpu", True), ("2.12.1", False), ("2.14.0a0", False)]
)
def test_the_operators_are_used_in_tested_versions_only(version, tested):
    assert is_tested(version) is tested


def test_other_devices_and_transforms_use_the_dense_form():
    assert all(capability.is_supported(torch.device(name)) for name in ("cpu", "meta"))
    assert not capability.is_supported(torch.device("cuda"))
    (q, k, v), bias = steep("causal", torch.float64)
    sdpa, seen = SDPA(ScorePipeline(0.4, [], Softmax(Dims(dim=40, heads=len(STEEP), dim_head=K)))), []
    sdpa.eager.register_forward_hook(lambda *_: seen.append("eager"))
    sdpa.prepare(bias, CPU)
    assert "dense" not in bias.memo
    torch.vmap(lambda x: sdpa(q, k, x, bias))(v[None])
    assert seen == ["eager"]

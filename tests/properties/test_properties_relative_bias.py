"""Attention with a relative bias table equals the dense form for every mask, and its memory is linear."""

import pytest
import torch
from property_subject import differ, perturb, same

import flagformer
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
from flagformer.ops.lengths import LONG, LONG_TABLE
from flagformer.score.softmax import Softmax

CHUNK = CHUNKS[1]
B, H, K, T = 2, 4, 8, 2 * CHUNK + 22  # two whole chunks and a part of one
CPU = torch.device("cpu")
PLACES = torch.arange(T)
PLAIN = Layout.arange(T, CPU)
RIGHT = PLAIN.masked_by(torch.tensor([[T], [T - 40]]) > PLACES)
LEFT = Layout.left_padded(torch.tensor([0, CHUNK + 6]), T)
PACKED = Layout.packed(torch.tensor([[70, 60, 20], [30, 90, 0]]), T)

# name -> (rules, queries, keys); padding and segments are rules by their layouts
STANDINGS = {
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


def inputs(standing, groups, same_from, dtype):
    """q, k, v, and a table in which distances from `same_from` on share their bias."""
    _, queries, keys = STANDINGS[standing]
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


def bias_of(standing, table, same_from):
    rules, queries, keys = STANDINGS[standing]
    last = T if same_from is None else same_from
    own = TableBias(lambda distance: table[distance.clamp(max=last) + T - 1], same_from)
    return AttentionBias(rules, own, queries, keys).narrowed()


@pytest.fixture
def by_distance_at_any_length(monkeypatch):
    monkeypatch.setattr(lengths, "LONG", 1)


def path():
    return ScorePipeline(0.4, [], Softmax(Dims(dim=16, heads=H, dim_head=K)))


def gradients(kernel, tensors, bias):
    assert isinstance(kernel, Eager) or getattr(kernel, "fused", kernel).reads_relative(bias, CPU)
    out = kernel(*tensors[:3], bias)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)]


@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("same_from", [None, 20])
@pytest.mark.parametrize("groups", [H, 2])
@pytest.mark.usefixtures("by_distance_at_any_length")
def test_a_learned_table_equals_the_dense_form(standing, same_from, groups):
    tensors = inputs(standing, groups, same_from, torch.float64)
    bias = bias_of(standing, tensors[3], same_from)
    got = gradients(SDPATrainableBias(path()), tensors, bias)
    want = gradients(Eager(path()), tensors, bias)
    for name, one, other in zip(("out", "dq", "dk", "dv", "dtable"), got, want):
        same(one, other, name, tolerance=1e-11)  # fp64: sums of up to B * T * T numbers near 1
    differ(want[4], torch.zeros_like(want[4]), "the table's gradient")


@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.usefixtures("by_distance_at_any_length")
def test_a_fixed_table_equals_the_dense_form(standing, dtype, tolerance):
    tensors = inputs(standing, 1, None, dtype)
    bias = bias_of(standing, tensors[3].detach(), None)
    got = gradients(SDPA(path()), tensors[:3], bias)
    want = gradients(Eager(path()), tensors[:3], bias)
    for name, one, other in zip(("out", "dq", "dk", "dv"), got, want):
        same(one, other, name, tolerance)


def test_queries_without_keys_give_zeros_and_get_no_gradient():
    tensors = inputs("left padding", H, 20, torch.float64)
    out, dq, dk, dv, dtable = gradients(
        SDPATrainableBias(path()), tensors, bias_of("left padding", tensors[3], 20)
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


@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("same_from", [None, 20])
@pytest.mark.usefixtures("by_distance_at_any_length")
def test_the_operators_equal_the_reference(standing, same_from):
    *qkv, table = inputs(standing, H, same_from, torch.float64)
    relative = bias_of(standing, table, same_from).relative()
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


# ---- models: from LONG tokens on against the dense form of the same weights

N = LONG + 9
TINY = {"num_tokens": 11, "max_seq_len": 2 * N, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}
BIASES = {
    "none": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5": {"rel_pos_bias": True, "rel_pos_max_distance": 40},
    "dynamic": {"dynamic_pos_bias": True},
}
BETWEEN = {
    "plain": {},
    "window": {"window": 70},
    "right padding": {"mask": torch.tensor([[N], [N - 90]]) > torch.arange(N)},
    "left padding": {"seq_start_pos": torch.tensor([0, 130])},
    "packed": {"seq_lens": [[100, 150, N - 250], [30, 200]]},
    "packed window": {"seq_lens": [[100, 150, N - 250], [30, 200]], "window": 40},
    "positions": {"pos": torch.arange(N) * 2},
    "explicit": {"attn_mask": torch.rand(N, N, generator=torch.Generator().manual_seed(0)) > 0.5},
}


def model_of(flags, kind="decoder"):
    torch.manual_seed(0)
    return perturb(flagformer.build({"model": kind, **TINY, **flags}).double())


def ids_of(length=N):
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(3))


def real(how):
    """[B, N], tokens whose output is defined."""
    if "mask" in how:
        return how["mask"]
    if "seq_start_pos" in how:
        return torch.arange(N) >= how["seq_start_pos"][:, None]
    ends = torch.tensor([[sum(row)] for row in how.get("seq_lens", [[N], [N]])])
    return torch.arange(N) < ends


def learn(model, how):
    """Logits of valid tokens, and every gradient."""
    model.zero_grad(set_to_none=True)
    logits = model(ids_of(), **how)[real(how)]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), grads


def assert_equals_dense(model, how, monkeypatch):
    got, grads = learn(model, how)
    monkeypatch.setattr(lengths, "LONG", 10**9)
    want, dense_grads = learn(model, how)
    same(got, want, "logits", tolerance=1e-10)
    assert grads.keys() == dense_grads.keys()
    for name, grad in grads.items():
        same(grad, dense_grads[name], name, tolerance=1e-10 * (1 + dense_grads[name].abs().max().item()))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("how", BETWEEN)
def test_long_models_equal_the_dense_form(bias, how, monkeypatch):
    assert_equals_dense(model_of(BIASES[bias]), BETWEEN[how], monkeypatch)


@pytest.mark.parametrize("kind", ["encoder", "prefix_decoder"])
@pytest.mark.parametrize("bias", BIASES)
def test_long_bidirectional_models(kind, bias, monkeypatch):
    assert_equals_dense(model_of(BIASES[bias], kind), BETWEEN["right padding"], monkeypatch)


@pytest.mark.parametrize(
    "more",
    [
        {"attn_kv_heads": 2},
        {"attn_value_dim_head": 3},
        {"attn_value_dim_head": 11, "attn_kv_heads": 2},
        {"attn_shared_kv": True},
        {"attn_num_mem_kv": 2},
        {"checkpoint": "sublayer"},
        {"weight_tie_layers": True},
    ],
)
def test_long_models_with_more_flags(more, monkeypatch):
    assert_equals_dense(model_of({**BIASES["t5"], **more}), {}, monkeypatch)


def reads(kernel, bias):
    kernel = getattr(kernel, "fused", kernel)
    return isinstance(kernel, SDPA) and kernel.reads_relative(bias, CPU)


def takes_table(model, monkeypatch, **how):
    """Whether a forward of LONG tokens passes a table to its kernels."""
    seen = []
    monkeypatch.setattr(
        type(model.attn_layers.sublayers[0].fn.core.kernel),
        "forward",
        lambda kernel, q, k, v, bias: (seen.append(reads(kernel, bias)), q)[1],
    )
    model(ids_of(), **how)
    assert len(set(seen)) == 1
    return seen[0]


@pytest.mark.parametrize(
    ("flags", "how", "expected"),
    [
        (BIASES["alibi"], {}, True),
        (BIASES["t5"], {}, True),
        (BIASES["none"], {"window": 70}, True),
        (BIASES["none"], {}, False),
        (BIASES["t5"], {"return_attn": True}, True),
        ({**BIASES["t5"], "attn_dropout": 0.1}, {}, False),
        ({**BIASES["t5"], "attn_num_mem_kv": 1}, {}, False),
        ({**BIASES["t5"], "attn_flash": False}, {}, False),
        (BIASES["t5"], BETWEEN["positions"], False),
    ],
)
def test_the_table_is_used_under_these_conditions(flags, how, expected, monkeypatch):
    assert takes_table(model_of(flags), monkeypatch, **how) is expected


def saved_bytes(model, length, how):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids_of(length), **how)
    return sum(kept.values())


def growth(model, how):
    """The ratio of the last 256 tokens' memory to that of the 256 before: 1 if memory is linear in length."""
    first, second, third = (saved_bytes(model, LONG * factor, how) for factor in (1, 2, 3))
    return (third - second) / (second - first)


@pytest.mark.parametrize("bias", BIASES)
def test_saved_memory_is_linear(bias, monkeypatch):
    model, how = model_of({**BIASES[bias], "max_seq_len": 3 * LONG}), {"window": 70}
    linear = growth(model, how)
    assert abs(linear - 1) < 0.02, f"{linear:.3f}"  # biases of a few distances more than n
    monkeypatch.setattr(lengths, "LONG", 10**9)
    assert growth(model, how) > 1.2, "the measure does not distinguish n from n * n"


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("window", [None, 80])
def test_decoding_in_long_blocks_equals_the_full_forward(bias, window):
    model, ids, starts = model_of(BIASES[bias]).eval(), ids_of(2 * N), torch.tensor([0, 50])
    state = model.init_state(2, 2 * N, window=window, seq_start_pos=starts)
    with torch.no_grad():
        blocks = [model(ids[:, at : at + size], state=state) for at, size in ((0, N), (N, N - 1))]
        blocks.append(model(ids[:, -1:], state=state))
        want = model(ids, seq_start_pos=starts, window=window)
    got = torch.cat(blocks, dim=1)
    same(got[0], want[0], "cached", tolerance=1e-10)
    same(got[1, 50:], want[1, 50:], "cached, left-padded", tolerance=1e-10)


@pytest.mark.parametrize("bias", ["alibi", "t5"])
def test_long_models_compile_and_export(bias):
    model = model_of(BIASES[bias])
    want, grads = learn(model, {})
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    model.zero_grad(set_to_none=True)
    logits = compiled(ids_of())[real({})]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    same(logits.detach(), want, "compiled", tolerance=1e-12)
    for name, grad in grads.items():
        same(dict(model.named_parameters())[name].grad, grad, name, tolerance=1e-12)
    exported = torch.export.export(model.eval(), (ids_of(),)).module()
    same(exported(ids_of())[real({})].detach(), want, "exported", tolerance=1e-12)


@pytest.mark.parametrize("bias", ["alibi", "t5"])
def test_long_models_under_bf16_autocast(bias):
    model = model_of(BIASES[bias]).float()
    want, _ = learn(model, {})
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids_of())
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits.float() * weights).sum().backward()
    near = 0.05 * want.abs().max().item()  # bf16 has 8 bits
    same(logits.float()[real({})].detach(), want, "bf16 against fp32", tolerance=near)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("bias", "kernel"), [("alibi", "SDPA"), ("t5", "SDPATrainableBias")])
def test_explain_states_when_the_table_is_used(bias, kernel):
    text = model_of(BIASES[bias]).explain()
    line = next(line for line in text.splitlines() if line.strip().startswith("kernel:"))
    assert kernel in line
    assert f"from {LONG} tokens on" in line


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


def steep(standing, dtype):
    """q, k and v of one row beyond the chunk size, and the bias of the slopes."""
    rules, layout = FAR[standing]
    generator = torch.Generator().manual_seed(8)
    qkv = [torch.randn(2, len(STEEP), LENGTH, K, generator=generator, dtype=dtype) for _ in range(3)]
    own = TableBias(lambda distance: -STEEP.to(dtype) * distance.abs()[..., None], None)
    return [x.requires_grad_() for x in qkv], AttentionBias(rules, own, layout, layout).narrowed()


@pytest.mark.parametrize("standing", FAR)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_underflowed_weights_do_not_change_the_result(standing, dtype, tolerance):
    qkv, bias = steep(standing, dtype)
    path = ScorePipeline(0.4, [], Softmax(Dims(dim=40, heads=len(STEEP), dim_head=K)))
    real = FAR[standing][1].valid
    found = []
    assert SDPA(path).reads_relative(bias, CPU)
    for kernel in (SDPA(path), Eager(path)):
        out = kernel(*qkv, bias)
        if real is not None:  # outputs at padding are undefined
            out = out * real[:, None, :, None]
        weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out).sin()
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), qkv)])
    for name, one, other in zip(("out", "dq", "dk", "dv"), *found):
        same(one, other, name, tolerance)


@pytest.mark.parametrize("standing", FAR)
def test_a_steep_head_reads_its_neighbourhood_only(standing):
    (q, k, _), bias = steep(standing, torch.float32)
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


def test_a_torch_without_the_operators_uses_the_dense_form(monkeypatch):
    assert capability.private_operator("no_such_operator") is None
    assert capability.HAS_OPERATORS
    model = model_of(BIASES["t5"])
    want, grads = learn(model, {})
    monkeypatch.setattr(capability, "HAS_OPERATORS", False)
    got, others = learn(model, {})
    same(got, want, "logits", tolerance=1e-10)
    torch.testing.assert_close(others, grads, rtol=0, atol=1e-10)
    assert not takes_table(model, monkeypatch)


def test_other_devices_and_transforms_use_the_dense_form():
    assert all(capability.is_supported(torch.device(name)) for name in ("cpu", "meta"))
    assert not capability.is_supported(torch.device("cuda"))
    seen = []
    torch.vmap(lambda x: seen.append(capability.is_supported(CPU)) or x)(torch.zeros(2))
    assert seen == [False]

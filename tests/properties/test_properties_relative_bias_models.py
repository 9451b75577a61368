"""Models of long rows use a relative bias table and equal the dense form; their saved memory is linear."""

import pytest
import torch
from property_subject import perturb, same

import flagformer
from flagformer.attention.kernels.relative_bias import capability
from flagformer.attention.kernels.sdpa import SDPA
from flagformer.ops import lengths
from flagformer.ops.lengths import LONG

CPU = torch.device("cpu")
N = LONG + 9
TINY = {"num_tokens": 11, "max_seq_len": 2 * N, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}
BIASES = {
    "none": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5": {"rel_pos_bias": True, "rel_pos_max_distance": 40},
    "dynamic": {"dynamic_pos_bias": True},
}
FORMS = {
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


def valid(form):
    """[B, N], tokens whose output is defined."""
    if "mask" in form:
        return form["mask"]
    if "seq_start_pos" in form:
        return torch.arange(N) >= form["seq_start_pos"][:, None]
    ends = torch.tensor([[sum(row)] for row in form.get("seq_lens", [[N], [N]])])
    return torch.arange(N) < ends


def learn(model, form):
    """Logits of valid tokens, and every gradient."""
    model.zero_grad(set_to_none=True)
    logits = model(ids_of(), **form)[valid(form)]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), grads


def assert_equals_dense(model, form, monkeypatch):
    got, grads = learn(model, form)
    monkeypatch.setattr(lengths, "LONG", 10**9)
    want, dense_grads = learn(model, form)
    same(got, want, "logits", tolerance=1e-10)
    assert grads.keys() == dense_grads.keys()
    for name, grad in grads.items():
        same(grad, dense_grads[name], name, tolerance=1e-10 * (1 + dense_grads[name].abs().max().item()))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("form", FORMS)
def test_long_models_equal_the_dense_form(bias, form, monkeypatch):
    assert_equals_dense(model_of(BIASES[bias]), FORMS[form], monkeypatch)


@pytest.mark.parametrize("kind", ["encoder", "prefix_decoder"])
@pytest.mark.parametrize("bias", BIASES)
def test_long_bidirectional_models(kind, bias, monkeypatch):
    assert_equals_dense(model_of(BIASES[bias], kind), FORMS["right padding"], monkeypatch)


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


def takes_table(model, monkeypatch, **form):
    """Whether a forward of LONG tokens passes a table to its kernels."""
    seen = []
    monkeypatch.setattr(
        type(model.attn_layers.sublayers[0].fn.core.kernel),
        "forward",
        lambda kernel, q, k, v, bias: (seen.append(reads(kernel, bias)), q)[1],
    )
    model(ids_of(), **form)
    assert len(set(seen)) == 1
    return seen[0]


@pytest.mark.parametrize(
    ("flags", "form", "expected"),
    [
        (BIASES["alibi"], {}, True),
        (BIASES["t5"], {}, True),
        (BIASES["none"], {"window": 70}, True),
        (BIASES["none"], {}, False),
        (BIASES["t5"], {"return_attn": True}, True),
        ({**BIASES["t5"], "attn_dropout": 0.1}, {}, False),
        ({**BIASES["t5"], "attn_num_mem_kv": 1}, {}, False),
        ({**BIASES["t5"], "attn_flash": False}, {}, False),
        (BIASES["t5"], FORMS["positions"], False),
    ],
)
def test_the_table_is_used_under_these_conditions(flags, form, expected, monkeypatch):
    assert takes_table(model_of(flags), monkeypatch, **form) is expected


def saved_bytes(model, length, form):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids_of(length), **form)
    return sum(kept.values())


def growth(model, form):
    """The ratio of the last 256 tokens' memory to that of the 256 before: 1 if memory is linear in length."""
    first, second, third = (saved_bytes(model, LONG * factor, form) for factor in (1, 2, 3))
    return (third - second) / (second - first)


@pytest.mark.parametrize("bias", BIASES)
def test_saved_memory_is_linear(bias, monkeypatch):
    model, form = model_of({**BIASES[bias], "max_seq_len": 3 * LONG}), {"window": 70}
    linear = growth(model, form)
    assert abs(linear - 1) < 0.02, f"{linear:.3f}"  # biases of a few distances more than n
    monkeypatch.setattr(lengths, "LONG", 10**9)
    assert growth(model, form) > 1.2, "the measure does not distinguish n from n * n"


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
    logits = compiled(ids_of())[valid({})]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    same(logits.detach(), want, "compiled", tolerance=1e-12)
    for name, grad in grads.items():
        same(dict(model.named_parameters())[name].grad, grad, name, tolerance=1e-12)
    exported = torch.export.export(model.eval(), (ids_of(),)).module()
    same(exported(ids_of())[valid({})].detach(), want, "exported", tolerance=1e-12)


@pytest.mark.parametrize("bias", ["alibi", "t5"])
def test_long_models_under_bf16_autocast(bias):
    model = model_of(BIASES[bias]).float()
    want, _ = learn(model, {})
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids_of())
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits.float() * weights).sum().backward()
    near = 0.05 * want.abs().max().item()  # bf16 has 8 bits
    same(logits.float()[valid({})].detach(), want, "bf16 against fp32", tolerance=near)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("bias", "kernel"), [("alibi", "SDPA"), ("t5", "SDPATrainableBias")])
def test_explain_states_when_the_table_is_used(bias, kernel):
    text = model_of(BIASES[bias]).explain()
    line = next(line for line in text.splitlines() if line.strip().startswith("kernel:"))
    assert kernel in line
    assert f"from {LONG} tokens on" in line


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

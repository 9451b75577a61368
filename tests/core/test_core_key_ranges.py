"""Long rows on CPU use the loop over key ranges: it equals the chunked form, which equals the formula."""

import pytest
import torch

import flagformer
from flagformer.attention.kernels import key_ranges
from flagformer.attention.kernels.key_ranges import blocks, reference, sorted_key_ranges
from flagformer.attention.kernels.key_ranges.operators import attend_sorted
from flagformer.ops import lengths, tiling
from flagformer.ops.routing import Tokens

FLAGS = {
    "num_tokens": 29, "max_seq_len": 512, "dim": 32, "heads": 4, "attn_dim_head": 8, "depth": 2,
    "num_clusters": 5, "window_size": 16, "commitment_factor": 0.5,
}  # fmt: skip
EXTRA_FLAGS = {
    "defaults": {},
    "shared vectors": {"shared_qk": True},
    "grouped": {"attn_kv_heads": 2, "attn_value_dim_head": 12},
    "mixed": {"rotary_pos_emb": True, "n_local_attn_heads": 1, "local_attn_window_size": 8},
    "few in a cluster": {"num_clusters": 150},
    "one cluster": {"num_clusters": 1, "window_size": 400},
    "reversible": {"reversible": True},
}
CHUNKS, KEY_RANGES = 10**9, 2


def ids(length=300):
    return torch.randint(29, (2, length), generator=torch.Generator().manual_seed(1))


def model_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({**FLAGS, **flags}).double().train()


def trained(model, call):
    """Logits, losses and gradients of a training step."""
    logits, outputs = call(ids(), return_losses=True)
    (logits.cos().sum() + outputs.extra_loss).backward()
    return [logits.detach(), outputs.extra_loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("extra", EXTRA_FLAGS)
def test_key_ranges_equal_chunks(monkeypatch, extra):
    monkeypatch.setattr(tiling, "TILE_ELEMENTS", 1 << 12)  # 64 tokens or fewer, one or two heads
    monkeypatch.setattr(blocks, "SCORES", 1 << 13)  # several batches of blocks
    found = []
    for threshold in (CHUNKS, KEY_RANGES):
        monkeypatch.setattr(lengths, "LONG", threshold)
        model = model_of(**EXTRA_FLAGS[extra])
        found.append(trained(model, model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_block_after_a_cache_and_after_memories(monkeypatch):
    """Queries are the last of the keys."""
    found = []
    for threshold in (CHUNKS, KEY_RANGES):
        monkeypatch.setattr(lengths, "LONG", threshold)
        model = model_of(max_mem_len=64).eval()
        with torch.no_grad():
            state = model.init_state(2, 300)
            parts = [model(ids()[:, part], state=state) for part in (slice(0, 120), slice(120, 300))]
            parts.append(model(ids()))
            _, mems = model(ids()[:, :90], return_mems=True)
        logits = model(ids()[:, 90:200], mems=mems)
        logits.cos().sum().backward()
        found.append([*parts, logits.detach(), *(p.grad for p in model.parameters())])
    whole = torch.cat(found[1][:2], dim=1)
    torch.testing.assert_close(whole, found[1][2], rtol=0, atol=1e-10)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_unsupported_features_fall_back_to_chunks(monkeypatch):
    monkeypatch.setattr(lengths, "LONG", KEY_RANGES)
    monkeypatch.setattr(key_ranges, "attend", None)
    mask = torch.arange(300) < torch.tensor([[300], [200]])
    for flags, how in (
        ({"attn_num_mem_kv": 1}, {}),
        ({"rel_pos_bias": True}, {}),
        ({"attn_dropout": 0.1}, {}),
        ({"attn_softclamp_logits": True}, {}),
        ({}, {"mask": mask}),
        ({}, {"return_attn": True}),
    ):
        model_of(**flags)(ids(), **how)
    with pytest.raises(TypeError):
        model_of()(ids())


@pytest.mark.parametrize("extra", ["defaults", "grouped", "mixed"])
def test_the_compiled_graph_gives_the_same_key_ranges(monkeypatch, extra):
    used = []
    attend = key_ranges.attend
    monkeypatch.setattr(key_ranges, "attend", lambda *given: used.append(1) or attend(*given))
    plain, traced = (model_of(**EXTRA_FLAGS[extra], depth=1) for _ in range(2))
    wanted = trained(plain, plain)
    torch._dynamo.reset()
    compiled = torch.compile(traced, backend="aot_eager")
    found = trained(traced, compiled)
    assert len(used) == 2, "both use key ranges"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def operands(mask_self_unless_alone):
    """q, k and v with a key before the first query, grouped heads and odd row lengths, and key ranges."""
    generator = torch.Generator().manual_seed(2)
    sizes = ((4, 8), (2, 8), (2, 6))  # heads and their dimensions
    rows = [torch.randn(2, heads, 71, width, generator=generator) for heads, width in sizes]
    q, k, v = (x.double().requires_grad_() for x in rows)
    clusters = torch.randint(3, (2, 4, 71), generator=generator)
    keys, queries = Tokens(clusters, torch.arange(71)), Tokens(clusters[:, :, 1:], torch.arange(1, 71))
    return q, k, v, sorted_key_ranges(queries, keys, 71, 8, 1, mask_self_unless_alone)


def test_opcheck_of_the_operators():
    """Fake shapes, gradients, no mutated input."""
    q, k, v, ranges = operands(False)
    torch.library.opcheck(attend_sorted, (q[:, :, 1:], k, v, *ranges, 0.3))


@pytest.mark.parametrize("mask_self_unless_alone", [False, True])
def test_the_operators_equal_the_reference(mask_self_unless_alone, monkeypatch):
    """Output and gradients, in one part and in several."""
    q, k, v, ranges = operands(mask_self_unless_alone)
    found = []
    for attend, elements in ((reference.attend, 1), (key_ranges.attend, 1 << 19), (key_ranges.attend, 1)):
        monkeypatch.setattr(tiling, "TILE_ELEMENTS", elements)
        out = attend(q[:, :, 1:], k, v, ranges, 0.3)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), (q, k, v))])
    for want, one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-12)
        torch.testing.assert_close(other, want, rtol=0, atol=1e-12)


def test_without_the_operators_chunks_are_used(monkeypatch):
    monkeypatch.setattr(lengths, "LONG", KEY_RANGES)
    model = model_of()
    want = trained(model, model)
    monkeypatch.setattr(key_ranges, "is_supported", lambda q: False)
    monkeypatch.setattr(key_ranges, "attend", None)
    model = model_of()
    for one, other in zip(trained(model, model), want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_low_precision_is_close_to_chunks(monkeypatch):
    found = []
    for threshold in (CHUNKS, KEY_RANGES):
        monkeypatch.setattr(lengths, "LONG", threshold)
        with torch.no_grad():
            found.append(model_of(depth=1).bfloat16().eval()(ids()).float())
    assert found[1].isfinite().all()
    assert (found[0] - found[1]).abs().max() < 0.1  # of logits about 1, with 8 bits of mantissa

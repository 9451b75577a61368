"""Block-sparse cores equal the dense core where their blocks hold all keys, with every other feature."""

import pytest
import torch

import flagformer
from flagformer import AutoregressiveWrapper, FlagError, XLAutoregressiveWrapper
from flagformer.attention.cores.kmeans import KMeans

FLAGS = {
    "model": "decoder", "num_tokens": 23, "max_seq_len": 64, "dim": 16, "heads": 4, "attn_dim_head": 8,
    "depth": 2, "rotary_pos_emb": True,
}  # fmt: skip
# One cluster whose window holds all tokens, and local heads whose window covers the row.
ALL = {
    "routing": {"num_clusters": 1, "window_size": 64, "commitment_factor": 0.0},
    "local": {"n_local_attn_heads": 4, "local_attn_window_size": 64},
    "mixed": {"num_clusters": 1, "window_size": 64, "n_local_attn_heads": 2, "local_attn_window_size": 64},
    "local and dense": {"n_local_attn_heads": 1, "local_attn_window_size": 64},
}
EXTRA_FLAGS = {
    "defaults": {},
    "window": {"attn_max_attend_past": 3},
    "values": {"attn_value_dim_head": 12, "attn_num_mem_kv": 2},
    "shared values": {"attn_shared_kv": True},
    "rotary values": {"attn_rotary_embed_values": True},
    "bias": {"rel_pos_bias": True, "rotary_pos_emb": False, "attn_max_attend_past": 5},
    "shared vectors": {"shared_qk": True, "attn_value_dim_head": 12},
    "interleaved": {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 3},
    "interleaved window": {
        "num_memory_tokens": 2, "memory_tokens_interspersed_every": 3, "attn_max_attend_past": 3,
    },
    "memories": {"max_mem_len": 64},
    "memories and window": {"max_mem_len": 64, "attn_max_attend_past": 6, "shared_qk": True},
}  # fmt: skip


def build(**flags):
    torch.manual_seed(0)
    return flagformer.build({**FLAGS, **flags}).double().eval()


def pair(core, **extra):
    """A dense model, and one of this core with the same weights."""
    dense, sparse = build(**extra), build(**extra, **ALL[core])
    missing = sparse.load_state_dict(dense.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all("kmeans" in name for name in missing.missing_keys)
    return dense, sparse


def ids(length=13):
    return torch.randint(23, (2, length), generator=torch.Generator().manual_seed(1))


def same(got, want, tolerance=1e-9):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("extra", EXTRA_FLAGS)
@pytest.mark.parametrize("core", ALL)
def test_blocks_of_all_keys_give_what_the_dense_core_gives(core, extra):
    dense, sparse = pair(core, **EXTRA_FLAGS[extra])
    starts = torch.tensor([0, 4])
    same(sparse(ids()), dense(ids()))
    same(sparse(ids(), seq_start_pos=starts)[1, 4:], dense(ids(), seq_start_pos=starts)[1, 4:])
    front = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if "memories" not in extra and "shared" not in extra:
        how = {"prepend_embeds": front, "prepend_mask": torch.tensor([[True] * 3, [False, True, True]])}
        same(sparse(ids(), **how)[:, 3:], dense(ids(), **how)[:, 3:])


@pytest.mark.parametrize("extra", ["interleaved", "interleaved window", "window", "bias"])
@pytest.mark.parametrize("core", ALL)
def test_decoding_with_interleaved_memory_equals_the_dense_core(core, extra):
    """Rows of several lengths reach memory tokens at different steps: the core's caches follow."""
    dense, sparse = pair(core, **EXTRA_FLAGS[extra])
    starts = torch.tensor([0, 2])
    states = [model.init_state(2, 13, seq_start_pos=starts) for model in (dense, sparse)]
    for begin, end in [(0, 4), *((at, at + 1) for at in range(4, 11)), (11, 13)]:
        want, got = (m(ids()[:, begin:end], state=s) for m, s in zip((dense, sparse), states))
        real = torch.arange(begin, end) >= starts[:, None]
        same(got[real], want[real])
    order = torch.tensor([1, 1])
    for state in states:
        state.truncate(9)
        state.reorder(order)
    want, got = (m(ids()[:, 9:11], state=s) for m, s in zip((dense, sparse), states))
    same(got, want)


@pytest.mark.parametrize("extra", ["memories", "memories and window"])
@pytest.mark.parametrize("core", ALL)
def test_segments_with_memories_equal_the_dense_core(core, extra):
    dense, sparse = pair(core, **EXTRA_FLAGS[extra])
    left = [None, None]
    for begin, end in ((0, 5), (5, 9), (9, 13)):
        mask = torch.arange(begin, end) < torch.tensor([13, end - 1])[:, None]
        (want, left[0]), (got, left[1]) = (
            model(ids()[:, begin:end], mask=mask, mems=mems, return_mems=True)
            for model, mems in zip((dense, sparse), left)
        )
        same(got[mask], want[mask])


@pytest.mark.parametrize(
    "executor", [{}, {"checkpoint": "sublayer"}, {"checkpoint": "selective"}, {"reversible": True}]
)
def test_tokens_count_once_and_losses_have_gradients(executor):
    model = build(num_clusters=3, window_size=4, commitment_factor=0.5, ff_moe=True, **executor).train()
    loss, outputs = AutoregressiveWrapper(model).train()(ids(), return_outputs=True)
    assert {"kmeans.commitment", "moe.balance", "moe.z"} <= set(outputs.losses)
    loss.backward()
    for kmeans in (module for module in model.modules() if isinstance(module, KMeans)):
        # of 2 rows, 12 tokens: their queries and their keys
        assert kmeans.pending_stats.counts.sum(dim=1).tolist() == [48.0] * 4
    routers = [value.grad for name, value in model.named_parameters() if "router" in name]
    assert routers
    assert all(grad.abs().sum() > 0 for grad in routers)


@pytest.mark.parametrize("executor", [{"checkpoint": "sublayer"}, {"checkpoint": "selective"}])
def test_executors_give_the_gradients_of_all_losses(executor):
    flags = {"num_clusters": 3, "window_size": 4, "commitment_factor": 0.5, "ff_moe": True}
    grads = []
    for one in ({}, executor):
        model = build(**flags, **one).train()
        AutoregressiveWrapper(model).train()(ids()).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        same(one, other)


def test_reversible_gives_the_gradients_of_all_losses():
    """Sequential execution is the reference, with all activations saved."""
    flags = {
        "num_clusters": 3,
        "window_size": 4,
        "commitment_factor": 0.5,
        "ff_moe": True,
    }
    grads = []
    for how in ({"return_losses": True}, {"return_intermediates": True}):
        model = build(**flags, reversible=True).train()
        logits, outputs = model(ids(), **how)
        (logits.square().mean() + outputs.extra_loss).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        same(one, other, 1e-6)  # commitment is fp32, and streams are reconstructed up to rounding


def test_losses_are_added_for_every_head():
    flags = {"num_clusters": 3, "window_size": 4, "commitment_factor": 0.5, "ff_moe": True}
    model = build(**flags, max_mem_len=8).train()
    whole, outputs = AutoregressiveWrapper(model).train()(ids(), return_outputs=True)
    fp32 = 1e-5  # the dtype of the losses
    same(AutoregressiveWrapper(model, loss_chunks=3).train()(ids()), whole, fp32)
    alone = whole - outputs.extra_loss
    assert outputs.extra_loss > 0.01
    same(AutoregressiveWrapper(model).eval()(ids()), alone, fp32)
    same(XLAutoregressiveWrapper(model.train()).train()(ids()), whole, fp32)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"num_clusters": 3}, {"attn_z_loss_weight": 0.1}),
        ({"n_local_attn_heads": 2}, {"attn_z_loss_weight": 0.1}),
        ({"n_local_attn_heads": 4, "local_attn_window_size": 3}, {"attn_max_attend_past": 3}),
        ({"shared_qk": True}, {"attn_shared_kv": True}),
        ({"ff_moe": True}, {"ff_zero_init_output": True}),
        ({"ff_pkm": True}, {"ff_zero_init_output": True}),
    ],
)  # fmt: skip
def test_conflicting_flags_are_refused_by_both_names(one, other):
    with pytest.raises(FlagError) as caught:
        build(**one, **other)
    assert all(f"`{name}" in str(caught.value) for name in (next(iter(one)), next(iter(other))))
    if "local_attn_window_size" in one:
        build(**one, attn_max_attend_past=2)


def test_vector_inputs_need_no_token_flags():
    for name in ("emb_dropout", "num_memory_tokens", "max_mem_len"):
        with pytest.raises(FlagError, match=f"`{name}` is for RoutingTransformerLM"):
            flagformer.RoutingTransformer(
                dim=16, depth=1, max_seq_len=16, heads=2, window_size=4, **{name: 0}
            )

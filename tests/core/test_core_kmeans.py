"""The centroids of routing attention are updated once a step from the tokens of training forwards only."""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import flagformer
from flagformer.attention.cores.kmeans import KMeans
from flagformer.ops import tiling
from flagformer.ops.clusters import DEAD, REINIT, Centroids, ClusterStats, kmeans_step, nearest
from forked import run_ranks

FLAGS = {
    "num_tokens": 23, "max_seq_len": 32, "dim": 16, "heads": 4, "attn_dim_head": 8, "depth": 2,
    "num_clusters": 3, "window_size": 4, "n_local_attn_heads": 1, "local_attn_window_size": 4,
}  # fmt: skip
KINDS = {
    "decoder": {},
    "one vector": {"shared_qk": True},
    "grouped": {"attn_kv_heads": 2},
    "tied layers": {"weight_tie_layers": True},
}


def model_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({**FLAGS, **flags})


def kmeans_of(model):
    return [module for module in model.modules() if isinstance(module, KMeans)]


def centroids(model):
    return [
        part.clone() for kmeans in kmeans_of(model) for part in (kmeans.means, kmeans.sums, kmeans.counts)
    ]


def batch(rows=8, length=12, seed=1):
    return torch.randint(23, (rows, length), generator=torch.Generator().manual_seed(seed))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_new_model_in_eval_mode_is_deterministic_and_unchanged():
    model = model_of().eval()
    before = copy.deepcopy(model.state_dict())
    first = model(batch())
    first.sum().backward()
    assert torch.equal(first, model(batch()))
    model.update_kmeans()
    assert equal(before.values(), model.state_dict().values())


def test_rows_read_in_blocks_equal_whole_rows(monkeypatch):
    mask = torch.arange(12) < torch.tensor([12, 12, 9, 12, 5, 12, 12, 12])[:, None]
    found = []
    for numbers in (1 << 18, 1):  # one token per call
        monkeypatch.setattr(tiling, "TILE_ELEMENTS", numbers)
        model = model_of(commitment_factor=0.5).double().train()
        logits, outputs = model(batch(), mask=mask, return_losses=True)
        (logits.cos().sum() + outputs.extra_loss).backward()
        pending = [part for kmeans in kmeans_of(model) for part in kmeans.pending_stats]
        found.append([logits.detach(), *pending, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)  # fp32 sums in another order


def test_forward_and_backward_do_not_move_centroids():
    model = model_of().train()
    before = centroids(model)
    for seed in (1, 2):
        model(batch(seed=seed)).sum().backward()
    assert equal(before, centroids(model))
    model.update_kmeans()
    after = centroids(model)
    assert not equal(before, after)
    model.update_kmeans()
    assert equal(after, centroids(model)), "no token was counted since"


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_counted_once(kind):
    model = model_of(**KINDS[kind]).train()
    mask = torch.arange(12) < torch.tensor([[12]] * 6 + [[5], [0]])
    model(batch(), mask=mask)
    runs = 2 if kind == "tied layers" else 1
    vectors = 1 if kind == "one vector" else 2
    for kmeans in kmeans_of(model):
        assert kmeans.pending_stats.counts.sum(dim=1).tolist() == [runs * vectors * (6 * 12 + 5)] * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16 autocast"])
def test_a_recomputation_counts_no_token_and_adds_no_loss(precision):
    models = [model_of(commitment_factor=1.0), model_of(commitment_factor=1.0, checkpoint="sublayer")]
    found = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
            logits, outputs = model.train()(batch(), return_losses=True)
        held = [len(values) for values in outputs.losses.values()]
        (logits.float().square().mean() + outputs.extra_loss).backward()
        assert [len(values) for values in outputs.losses.values()] == held == [4], "q and k, two layers"
        model.update_kmeans()
        found.append([*centroids(model), outputs.extra_loss, *(p.grad for p in model.parameters())])
    assert equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accumulation_changes_nothing(dtype):
    whole, parts = (model_of().to(dtype).train() for _ in range(2))
    whole(batch())
    for rows in batch().chunk(4):
        parts(rows)
    for model in (whole, parts):
        model.update_kmeans()
    for one, other in zip(centroids(whole), centroids(parts)):
        assert one.dtype is torch.float32
        assert torch.allclose(one, other, atol=1e-6)


def rank_of_two(rank, path, dtype):
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    model = model_of().to(dtype).train()
    for rows in batch().chunk(4)[2 * rank : 2 * rank + 2]:
        model(rows)
    model.update_kmeans()
    torch.save(centroids(model), f"{path}/{rank}.pt")
    for kmeans in kmeans_of(model):  # a rank without tokens must not block the others
        kmeans.pending_stats = None
    if rank:
        model(batch(2))
    model.update_kmeans()
    torch.save(centroids(model), f"{path}/again-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_ranks_update_equally(dtype, tmp_path):
    run_ranks(rank_of_two, tmp_path, str(tmp_path), dtype)
    alone = model_of().to(dtype).train()
    alone(batch())
    alone.update_kmeans()
    first = torch.load(tmp_path / "0.pt")
    for rank in (0, 1):
        for one, other in zip(centroids(alone), torch.load(tmp_path / f"{rank}.pt")):
            assert torch.allclose(one, other, atol=1e-6)
    again = [torch.load(tmp_path / f"again-{rank}.pt") for rank in (0, 1)]
    assert equal(*again)
    assert not equal(first, again[0])


def test_the_step_is_that_of_the_formula():
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(2, 3, 40, 5), dim=-1)
    means = F.normalize(torch.randn(3, 4, 5), dim=-1)
    now = Centroids(means, torch.randn(3, 4, 5), torch.full((3, 4), 9.0))
    clusters, cosines = nearest(vectors, means)
    got = kmeans_step(now, ClusterStats.of(vectors, clusters, cosines, 4), 0.75)
    for head in range(3):
        for cluster in range(4):
            members = vectors[:, head][clusters[:, head] == cluster]
            total = 0.75 * now.sums[head, cluster] + 0.25 * members.sum(dim=0)
            assert torch.allclose(got.sums[head, cluster], total, atol=1e-5)
            assert torch.allclose(got.means[head, cluster], total / total.norm(), atol=1e-5)
            assert got.counts[head, cluster] == pytest.approx(0.75 * 9 + 0.25 * len(members))


def test_a_dead_cluster_is_reinitialised_at_the_farthest_token():
    means = torch.eye(4)[None, :3]  # [1, 3, 4]
    near, far = torch.tensor([1.0, 0.1, 0.0, 0.0]), torch.tensor([0.7, 0.1, 0.0, 0.7])
    other = torch.tensor([0.0, 1.0, 0.0, 0.2])
    vectors = F.normalize(torch.stack([near, far, near, other]), dim=-1)[None, None]
    clusters, cosines = nearest(vectors, means)
    assert clusters.tolist() == [[[0, 0, 0, 1]]]
    now = Centroids(means, means * 5, torch.tensor([[100.0, 100.0, 0.1]]))
    got = kmeans_step(now, ClusterStats.of(vectors, clusters, cosines, 3), 0.9)
    assert torch.allclose(got.means[0, 2], vectors[0, 0, 1])
    counts = torch.tensor([90.3, 90.1, 0.09])
    share = counts.mean()
    assert DEAD * share > 0.09
    assert got.counts[0].tolist() == pytest.approx([90.3, 90.1, float(REINIT * share)])
    assert torch.allclose(got.sums[0, 2], vectors[0, 0, 1] * REINIT * share)


def test_dead_clusters_are_revived_in_training():
    """All centroids but one start far from every token; after a few steps every one has tokens."""
    model = model_of(num_clusters=4, kmeans_ema_decay=0.5).train()
    kmeans = kmeans_of(model)[0]
    with torch.no_grad():
        kmeans.means[:, 1:] = kmeans.means[:, :1]  # ties go to the first
    for _ in range(6):
        model(batch())
        model.update_kmeans()
    model(batch())
    assert (kmeans.pending_stats.counts > 0).all()


def test_commitment_is_the_mean_square_distance_and_pulls_towards_the_centroid():
    model = model_of(depth=1, commitment_factor=0.25, use_abs_pos_emb=False).train()
    mask = torch.arange(12) < torch.tensor([[12]] * 7 + [[5]])
    _, outputs = model(batch(), mask=mask, return_losses=True)
    attention = model.attn_layers.sublayers[0]
    q, k, _ = attention.fn.source.projection(attention.in_norm(model.token_emb(batch())))
    want = 0
    for vectors in (q, k):
        units = F.normalize(vectors, dim=-1)[:, 1:]  # the first head is local
        near = torch.cdist(units, kmeans_of(model)[0].means.expand(8, -1, -1, -1)).amin(dim=-1)
        want = want + 0.25 * (near.square() / 8).transpose(1, 2)[mask].mean() / 2
    assert torch.allclose(outputs.extra_loss, want, atol=1e-6)
    assert sorted(outputs.losses) == ["kmeans.commitment"]
    gradients = torch.autograd.grad(outputs.extra_loss, attention.fn.source.projection.to_qkv.weight)[0]
    drawn = gradients.unflatten(0, (12, 8)).abs().amax(dim=(1, 2)) > 0  # heads of q, k and v
    assert drawn.tolist() == [False, True, True, True] * 2 + [False] * 4


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_wrappers_add_the_loss_in_training_only(factor):
    net = model_of(commitment_factor=factor)
    wrapper = flagformer.AutoregressiveWrapper(net)
    loss, outputs = wrapper.train()(batch(), return_outputs=True)
    entropy = F.cross_entropy(outputs.logits.flatten(0, 1), batch()[:, 1:].flatten())
    extra = 0 if outputs.extra_loss is None else outputs.extra_loss
    assert torch.allclose(loss, entropy + extra)
    assert (outputs.extra_loss is not None) == (factor > 0)
    assert torch.allclose(wrapper.eval()(batch()), entropy)


def test_encoder_decoders_add_the_losses_of_both_halves():
    half = {name: value for name, value in FLAGS.items() if name != "dim"}
    flags = {f"{prefix}_{name}": value for prefix in ("enc", "dec") for name, value in half.items()}
    torch.manual_seed(0)
    model = flagformer.XTransformer(dim=16, enc_commitment_factor=1.0, dec_commitment_factor=1.0, **flags)
    loss, outputs = model.train()(batch(), batch(seed=2), return_outputs=True)
    entropy = F.cross_entropy(outputs.logits.flatten(0, 1), batch(seed=2)[:, 1:].flatten())
    assert len(outputs.losses["kmeans.commitment"]) == 8
    assert torch.allclose(loss, entropy + outputs.extra_loss)
    before = centroids(model)
    model.update_kmeans()
    assert not any(torch.equal(a, b) for a, b in zip(before, centroids(model))), "both are updated"


def test_half_precision_does_not_round_centroids(tmp_path):
    model = model_of()
    want = centroids(model)
    for low in (copy.deepcopy(model).bfloat16(), copy.deepcopy(model).half(), copy.deepcopy(model).double()):
        assert equal(want, centroids(low))
    low = model.bfloat16().eval()
    low.save(tmp_path)
    loaded = flagformer.load(tmp_path).eval()
    assert loaded.token_emb.weight.dtype is torch.bfloat16
    assert equal(want, centroids(loaded))
    assert torch.equal(low(batch()), loaded(batch()))


def test_decoding_in_training_mode_counts_no_token():
    model = model_of().train()
    state = model.init_state(8, 12)
    with torch.no_grad():
        model(batch(), state=state)
    assert all(kmeans.pending_stats is None for kmeans in kmeans_of(model))

"""Local and routing attention against their definitions, token by token."""

import pytest
import torch

import flagformer
from flagformer.attention.cores.kmeans import KMeans
from flagformer.ops.clusters import first_equal, nearest
from flagformer.ops.routing import Tokens, chunks_of, latest_members

HEADS, WIDTH, LENGTH = 4, 8, 23
FLAGS = {
    "num_tokens": 11, "max_seq_len": 64, "dim": 16, "heads": HEADS, "attn_dim_head": WIDTH, "depth": 1,
    "use_abs_pos_emb": False,
}  # fmt: skip


def model_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({**FLAGS, **flags}).double().eval()


def routed(queries, keys, index, window, later):
    """The keys of a query's cluster without itself: the `window` nearest on each side."""
    same = [other for other in range(len(keys)) if other != index and keys[other] == queries[index]]
    earlier = [other for other in same if other < index][::-1][:window]
    return set(earlier) | set([other for other in same if other > index][:window] if later else [])


@pytest.mark.parametrize("later", [False, True], ids=["causal", "both sides"])
@pytest.mark.parametrize("window", [1, 3, 4, 40])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_chunks_have_exactly_the_keys_of_the_rule(count, size, window, later):
    torch.manual_seed(count)
    queries, keys = torch.randint(count, (2, 3, LENGTH)), torch.randint(count, (2, 3, LENGTH))
    keys[0, 0] = 0  # one cluster of all tokens
    window = min(window, LENGTH)
    places = torch.arange(100, 100 + LENGTH)
    chunks = chunks_of(Tokens(queries, places), Tokens(keys, places), 200, window, size, later)
    for row in range(2):
        for head in range(3):
            found = [set() for _ in range(LENGTH)]
            for chunk, members in enumerate(chunks.queries[row, :, head].tolist()):
                for index, query in enumerate(members):
                    met = chunks.keys[row, chunk, head][chunks.allowed[row, chunk, head, index]].tolist()
                    assert query < LENGTH or not met, "a padding query has no key"
                    assert len(met) == len(set(met)), "no key twice"
                    if query < LENGTH:
                        found[query] |= set(met)
                        assert chunks.slots[row, head, query] == chunk * size + index
            numbers = queries[row, head].tolist(), keys[row, head].tolist()
            assert found == [routed(*numbers, index, window, later) for index in range(LENGTH)]


def test_the_newest_query_of_a_session_equals_any_other():
    """Queries are the last of the keys; some keys have left the ring buffer."""
    torch.manual_seed(3)
    keys = torch.randint(3, (1, 2, LENGTH))
    queries = torch.randint(3, (1, 2, 4))
    first, last = torch.arange(50, 50 + LENGTH), torch.arange(50 + LENGTH - 4, 50 + LENGTH)
    chunks = chunks_of(Tokens(queries, last), Tokens(keys, first), 80, 3, 2, later=False)
    for head in range(2):
        for chunk, members in enumerate(chunks.queries[0, :, head].tolist()):
            for index, query in enumerate(members):
                if query < 4:
                    met = set(chunks.keys[0, chunk, head][chunks.allowed[0, chunk, head, index]].tolist())
                    padded = [None] * (LENGTH - 4) + queries[0, head].tolist()
                    assert met == routed(padded, keys[0, head].tolist(), LENGTH - 4 + query, 3, later=False)


@pytest.mark.parametrize("window", [1, 3, 30])
def test_ring_buffers_hold_the_latest(window):
    torch.manual_seed(4)
    clusters = torch.randint(4, (2, 3, LENGTH))
    places, members = latest_members(Tokens(clusters, torch.arange(LENGTH)), 5, window)
    for row in range(2):
        for head in range(3):
            for cluster in range(5):
                inside = [at for at in range(LENGTH) if clusters[row, head, at] == cluster]
                assert members[row, head, cluster] == len(inside)
                ring = places[row, head, cluster].tolist()
                want = [-1] * window
                for rank, at in enumerate(inside):
                    want[rank % window] = at
                assert ring == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("count", "width"), [(3, 4), (5, 8), (17, 16), (3, 64)])
def test_equal_centroids_give_the_lower_cluster(count, width, dtype):
    """For any matrix product of equal columns, on any CPU."""
    torch.manual_seed(count)
    means = torch.nn.functional.normalize(torch.randn(2, count, width), dim=-1)
    twice = torch.cat([means, means.flip(1)], dim=1).to(dtype)  # every centroid twice
    twice[:, -1, 0] = twice[:, 0, 0] = 0.0
    twice[:, -1, 0] *= -1  # zeros of both signs are equal
    assert torch.equal(
        first_equal(twice), torch.cat([torch.arange(count), torch.arange(count).flip(0)]).expand(2, -1)
    )
    vectors = torch.nn.functional.normalize(torch.randn(2, 2, 50, width), dim=-1).to(dtype)
    clusters, _ = nearest(vectors, twice)
    assert clusters.max() < count
    cosines = vectors.double() @ twice[:, :count].double().mT
    sure = cosines.topk(2, dim=-1).values.diff(dim=-1)[..., 0] < -0.05  # beyond the rounding of bf16
    assert torch.equal(clusters[sure], cosines.argmax(dim=-1)[sure])


def sees(model, ids, **inputs):
    """The logits, with and without returned attention maps."""
    with torch.no_grad():
        logits, maps = model(ids, return_attn=True, **inputs)
        assert torch.allclose(logits, model(ids, **inputs), atol=1e-12)
    return logits, maps[0]


def content_of(model, ids):
    """Queries and keys of the only layer before rotation, [B, H, T, K] each."""
    attention = model.attn_layers.sublayers[0]
    x = attention.in_norm(model.token_emb(ids))
    q, k, _ = attention.fn.source.projection(x)
    return q, k


def clusters_of(vectors, means):
    """The nearest centroid of each vector, by loops."""
    rows = []
    for head in range(vectors.shape[1]):
        units = vectors[:, head] / vectors[:, head].norm(dim=-1, keepdim=True)
        rows.append((units.float() @ means[head].T).argmax(dim=-1))
    return torch.stack(rows, dim=1).tolist()


@pytest.mark.parametrize("position", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["own keys", "shared_qk"])
@pytest.mark.parametrize("window", [2, 50])
def test_routing_equals_attention_over_the_pairs_of_the_rule(window, tied, position):
    model = model_of(num_clusters=3, window_size=window, shared_qk=tied, **position)
    dense = model_of(shared_qk=tied, **position)
    dense.load_state_dict(model.state_dict(), strict=False)
    ids = torch.randint(11, (2, LENGTH))
    logits, weights = sees(model, ids)
    kmeans = next(module for module in model.modules() if isinstance(module, KMeans))
    queries, keys = (clusters_of(part, kmeans.means) for part in content_of(model, ids))
    keys = queries if tied else keys
    allowed = torch.zeros(2, HEADS, LENGTH, LENGTH, dtype=torch.bool)
    for row in range(2):
        for head in range(HEADS):
            for index in range(LENGTH):
                met = routed(queries[row][head], keys[row][head], index, window, later=False)
                allowed[row, head, index, list(met if tied and met else met | {index})] = True
    assert torch.equal(weights > 0, allowed)
    # dense attention under that mask is the same model, shared_qk or not
    want, maps = sees(dense, ids, attn_mask=allowed)
    assert torch.allclose(weights, maps, atol=1e-12)
    assert torch.allclose(logits, want, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True], ids=["own keys", "shared_qk"])
def test_published_topk_selection_is_averaged(tied):
    """The balanced selection of the paper, section 4.2, without padded tokens."""
    flags = {"num_clusters": 3, "window_size": 5, "shared_qk": tied, "num_tokens": LENGTH}
    model = model_of(model="encoder", routing_selection="topk", **flags)
    ids = torch.stack([torch.randperm(LENGTH) for _ in range(2)])  # no two equal
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, 3:] = False  # fewer than a window
    attention = model.attn_layers.sublayers[0]
    q, k, v = attention.fn.source.projection(attention.in_norm(model.token_emb(ids)))
    kmeans = next(module for module in model.modules() if isinstance(module, KMeans))
    weights = torch.zeros(2, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    times = torch.zeros(2, HEADS, LENGTH, 1, dtype=torch.float64)
    for row in range(2):
        valid = mask[row].nonzero()[:, 0]
        for head in range(HEADS):
            for mean in kmeans.means[head].double():
                queries, keys = (
                    valid[
                        (part[row, head, valid] @ mean / part[row, head, valid].norm(dim=-1)).argsort()[-5:]
                    ]
                    for part in (q, k)
                )
                for query in queries:
                    scores = (k[row, head, keys] @ q[row, head, query]) * WIDTH**-0.5
                    if tied:
                        scores[keys == query] = -1e9
                    weights[row, head, query, keys] += scores.softmax(dim=0)
                    times[row, head, query] += 1
    got = attention.fn.to_out(((weights @ v) / (times + 1e-5)).transpose(1, 2).flatten(2))
    seen = []
    attention.fn.register_forward_hook(lambda module, given, out: seen.append(out))
    _, maps = sees(model, ids, mask=mask)
    assert torch.allclose(seen[0][mask], got[mask], atol=1e-12)
    assert torch.allclose(
        maps[mask[:, None].expand(-1, HEADS, -1)],
        (weights / times.clamp(min=1))[mask[:, None].expand(-1, HEADS, -1)],
        atol=1e-12,
    )


ROTARY = {"rotary_pos_emb": True}
# Rotary fixed windows of an encoder follow local-attention: tests/parity compares them.
BANDS = [
    (position, kind, fixed)
    for position in ({}, ROTARY, {"rel_pos_bias": True})
    for kind in ("decoder", "encoder")
    for fixed in (False, True)
    if not (position is ROTARY and kind == "encoder" and fixed)
]


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize(("position", "kind", "fixed"), BANDS, ids=str)
def test_local_heads_equal_attention_under_a_band(position, kind, radius, fixed):
    flags = {"model": kind, **position}
    local = {
        "local_attn_window_size": 4,
        "local_attn_radius_blocks": radius,
        "local_attn_fixed_windows": fixed,
    }
    model = model_of(n_local_attn_heads=3, **local, **flags)
    dense = model_of(**flags)
    dense.load_state_dict(model.state_dict())
    ids = torch.randint(11, (2, LENGTH))
    places = torch.arange(LENGTH)
    distance = places[:, None] - places
    allowed = torch.ones(1, HEADS, LENGTH, LENGTH, dtype=torch.bool)
    windows = places[:, None] // 4 - places // 4
    allowed[:, :3] = windows.abs() <= radius if fixed else distance.abs() <= 4 * radius
    want, maps = sees(dense, ids, attn_mask=allowed)
    got, weights = sees(model, ids)
    assert torch.allclose(weights, maps, atol=1e-12)
    assert torch.allclose(got, want, atol=1e-12)


def test_shared_qk_masks_a_token_from_itself():
    """Keys are unit queries; only the first token, which has no other key, attends to itself."""
    model = model_of(shared_qk=True)
    ids = torch.randint(11, (2, LENGTH))
    q, k = content_of(model, ids)
    assert torch.allclose(k, q / q.norm(dim=-1, keepdim=True))
    scores = (q @ k.mT) * WIDTH**-0.5
    others = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)
    others[0, 0] = True
    want = scores.masked_fill(~others, float("-inf")).softmax(dim=-1)
    assert torch.allclose(sees(model, ids)[1], want, atol=1e-12)


def test_padded_tokens_are_in_no_cluster():
    """A window of one: a padded token in a cluster would displace another."""
    model = model_of(num_clusters=2, window_size=1, rotary_pos_emb=True)
    ids = torch.randint(11, (1, LENGTH))
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    mask[:, 5:15] = False
    pos = torch.arange(LENGTH)[None]
    gone = torch.cat([ids[:, :5], ids[:, 15:]], dim=1)
    with torch.no_grad():
        got = model(ids, mask=mask, pos=pos)
        want = model(gone, pos=torch.cat([pos[:, :5], pos[:, 15:]], dim=1))
    assert torch.allclose(torch.cat([got[:, :5], got[:, 15:]], dim=1), want, atol=1e-12)


def test_no_later_token_changes_a_single_bit():
    """Blocks of one shape, so that even the order of a sum is the same."""
    model = model_of(num_clusters=3, window_size=4, n_local_attn_heads=2, local_attn_window_size=4).float()
    ids = torch.randint(11, (1, 64))
    changed = ids.clone()
    changed[:, 40:] = (changed[:, 40:] + 3) % 11
    for mode in (model.eval(), model.train()):
        with torch.no_grad():
            before, after = mode(ids), mode(changed)
        assert (before[:, :40] - after[:, :40]).abs().max() <= 1e-6
        assert not torch.equal(before[:, 40:], after[:, 40:])


@pytest.mark.parametrize("kernel", [{}, {"attn_flash": False}], ids=["fused", "eager"])
@pytest.mark.parametrize("kind", ["local", "routing"])
def test_gradients_are_those_of_attention_over_the_same_pairs(kind, kernel):
    """Longer than a block, and no multiple of one: padding indices must give no gradient."""
    few = {"n_local_attn_heads": 4, "local_attn_window_size": 5}
    if kind == "routing":
        few = {"num_clusters": 3, "window_size": 6}
    model, dense = model_of(**few, **kernel, alibi_pos_bias=True), model_of(**kernel, alibi_pos_bias=True)
    dense.load_state_dict(model.state_dict(), strict=False)
    ids = torch.randint(11, (2, 75))
    with torch.no_grad():
        allowed = model(ids, return_attn=True)[1][0] > 0
    found = []
    for net, inputs in ((model, {}), (dense, {"attn_mask": allowed})):
        net(ids, **inputs).cos().sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-9), name


@pytest.mark.parametrize("num_prefix_kv", [0, 2])
def test_a_query_attends_to_its_centroids_topk_of_a_context(num_prefix_kv):
    """With prefix keys of the cluster."""
    flags = {"cross_attend": True, "context_num_clusters": 3, "context_window_size": 4}
    model = model_of(**flags, cluster_num_mem_kv=num_prefix_kv)
    attention = next(s.fn for s in model.attn_layers.sublayers if s.kind == "c")
    width = model.attn_layers.dims.dim
    context = torch.randn(2, 9, width).double()
    mask = torch.arange(9) < torch.tensor([[9], [3]])
    given, seen = [], []

    def note(core, arguments, out):
        given.append(arguments)
        seen.append(out)

    attention.core.register_forward_hook(note)
    with torch.no_grad():
        model(torch.randint(11, (2, LENGTH)), context=context, context_mask=mask)
    q, kv, *_ = given[0]
    want = torch.zeros_like(seen[0])
    means = attention.core.kmeans.means.double()
    for row in range(2):
        valid = mask[row].nonzero()[:, 0]
        for head in range(HEADS):
            k, v = kv.k[row, head, valid], kv.v[row, head, valid]
            for index in range(LENGTH):
                query = q[row, head, index]
                cluster = (means[head] @ query).argmax()
                near = (k @ means[head, cluster] / k.norm(dim=-1)).argsort(descending=True)[:4]
                keys, values = k[near], v[near]
                if num_prefix_kv:
                    memory = attention.core.memory
                    keys = torch.cat([memory.k[head, cluster], keys])
                    values = torch.cat([memory.v[head, cluster], values])
                want[row, head, index] = (keys @ query * WIDTH**-0.5).softmax(dim=0) @ values
    assert torch.allclose(seen[0], want, atol=1e-12)

"""Properties of every causal routing model: no future leak, in training too; decoding equals the forward;
padding changes nothing; every query has a key."""

import pytest
import torch

import flagformer
from flagformer.attention.cores import routed_context
from flagformer.ops import lengths

WINDOW, LENGTH = 3, 13
FLAGS = {
    "num_tokens": 23, "max_seq_len": 32, "dim": 24, "heads": 4, "attn_dim_head": 6, "depth": 2,
    "num_clusters": 3, "window_size": WINDOW,
}  # fmt: skip
CAUSAL = {
    "own keys": {},
    "shared": {"shared_qk": True},
    "mixed heads": {"n_local_attn_heads": 2, "local_attn_window_size": 2},
    "local layer": {"n_local_attn_heads": (4, 0), "local_attn_window_size": 2},
    "shared, mixed": {"shared_qk": True, "n_local_attn_heads": 2, "local_attn_window_size": 2},
    "experts": {"ff_moe": True, "moe_num_experts": 3},
    "product keys": {"ff_pkm": True, "pkm_num_keys": 6},
    "shifted": {"shift_tokens": 1},
    "grouped, rotary, prefix kv": {"attn_kv_heads": 2, "rotary_pos_emb": True, "attn_num_mem_kv": 2},
    "reversible": {"reversible": True, "rel_pos_bias": True},
    "context": {"cross_attend": True, "context_num_clusters": 3, "context_window_size": 2},
    "all": {
        "n_local_attn_heads": 2, "local_attn_window_size": 2, "shift_tokens": 1, "ff_pkm": (True, False),
        "ff_moe": (False, True), "moe_num_experts": 3, "pkm_num_keys": 6, "shared_qk": True,
    },
}  # fmt: skip


def model_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({**FLAGS, **flags}).double()


def ids(rows=2, length=LENGTH, seed=1):
    return torch.randint(23, (rows, length), generator=torch.Generator().manual_seed(seed))


def side(model, rows=2):
    context = torch.randn(rows, 7, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {"context": context} if model.attn_layers.has_cross else {}


@pytest.mark.parametrize("least", [lengths.LONG, 2], ids=["chunks", "key ranges"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_no_model_in_training_attends_to_the_future(monkeypatch, kind, least):
    """After a k-means step and with another one pending; all later tokens are replaced."""
    monkeypatch.setattr(lengths, "LONG", least)
    model = model_of(**CAUSAL[kind]).train()
    with torch.no_grad():
        for seed in (4, 5):
            model(ids(seed=seed), **side(model))
            model.update_kmeans()
        model(ids(seed=6), **side(model))
        before = model(ids(), **side(model))
        for first in (1, 6, LENGTH - 1):
            changed = ids()
            changed[:, first:] = (changed[:, first:] + 1 + ids(seed=7)[:, first:] % 22) % 23
            after = model(changed, **side(model))
            assert (after - before)[:, :first].abs().max() < 1e-9
            assert (after - before)[:, first:].abs().max() > 1e-6


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_session_equals_the_forward_over_many_windows(kind):
    model = model_of(**CAUSAL[kind]).eval()
    with torch.no_grad():
        whole, state = model(ids(), **side(model)), model.init_state(2, LENGTH)
        parts = [model(ids()[:, :2], state=state, **side(model))]
        parts += [model(ids()[:, at : at + 1], state=state) for at in range(2, LENGTH)]  # 4 windows
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-9


def test_a_session_selects_from_its_context_once_and_its_rows_can_be_reordered(monkeypatch):
    asked = []
    select = routed_context.cluster_topk
    monkeypatch.setattr(routed_context, "cluster_topk", lambda *words: asked.append(1) or select(*words))
    model = model_of(**CAUSAL["context"]).eval()
    traded = torch.tensor([1, 1])
    context = side(model)["context"]
    with torch.no_grad():
        state = model.init_state(2, LENGTH)
        model(ids()[:, :2], state=state, context=context)
        state.reorder(traded)
        got = torch.cat([model(ids()[traded, at : at + 1], state=state) for at in range(2, LENGTH)], dim=1)
        assert len(asked) == FLAGS["depth"]
        want = model(ids()[traded], context=context[traded])[:, 2:]
    assert (got - want).abs().max() < 1e-9


@pytest.mark.parametrize("kind", CAUSAL)
def test_padding_on_either_side_changes_nothing(kind):
    model = model_of(**CAUSAL[kind]).eval()
    with torch.no_grad():
        alone = model(ids(1), **side(model, 1))
        nothing = ids(1, 6, seed=9)
        right = model(
            torch.cat([ids(1), nothing], dim=1),
            mask=torch.arange(LENGTH + 6)[None] < LENGTH,
            **side(model, 1),
        )
        left = model(torch.cat([nothing, ids(1)], dim=1), seq_start_pos=torch.tensor([6]), **side(model, 1))
    assert (right[:, :LENGTH] - alone).abs().max() < 1e-9
    assert (left[:, 6:] - alone).abs().max() < 1e-9


@pytest.mark.parametrize("kind", [kind for kind in CAUSAL if kind != "context"])
def test_every_valid_token_is_attended_to_and_attends_to_a_key(kind):
    """Attention maps: causal rows that sum to one; no query attends to padding."""
    model = model_of(**CAUSAL[kind]).eval()
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [8]])
    with torch.no_grad():
        _, maps = model(ids(), mask=mask, return_attn=True)
    num_prefix_kv = CAUSAL[kind].get("attn_num_mem_kv", 0)
    for weights in maps:
        real = weights[1, :, :8]
        torch.testing.assert_close(real.sum(dim=-1), torch.ones_like(real[..., 0]))
        assert (real[..., num_prefix_kv + 8 :] == 0).all()
        assert (weights[0, :, :, num_prefix_kv:].triu(1) == 0).all()
        if not CAUSAL[kind].get("shared_qk"):  # a token attends to itself only if no other key is allowed
            assert (weights[0, :, :, num_prefix_kv:].diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("selection", ["recent", "topk"])
def test_windows_and_clusters_larger_than_the_row_cover_it(selection):
    """One cluster with a window beyond the row: dense attention."""
    routed = model_of(
        model="encoder", num_clusters=1, window_size=50, routing_selection=selection, commitment_factor=0.0
    ).eval()
    sizes = {name: value for name, value in FLAGS.items() if name not in ("num_clusters", "window_size")}
    dense = flagformer.build({**sizes, "model": "encoder"}).double().eval()
    dense.load_state_dict(routed.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(routed(ids()), dense(ids()), rtol=0, atol=1e-4)  # a mean's 1e-5 added to 1

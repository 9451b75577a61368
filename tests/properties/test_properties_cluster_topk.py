"""Cluster top-k attention: every property of acausal models, and a warning in causal ones."""

import warnings

import pytest
import torch
from property_checks import checks_of, compiles, exports, failures
from property_settings import TINY, for_graphs
from property_subject import Subject, refusal

import flagformer
from flagformer.lab.reference import settings

TOPK = {**settings(), **TINY, "num_clusters": 3, "window_size": 2}
FLAGS = {**TOPK, "model": "encoder", "routing_selection": "topk"}
EXTRA_FLAGS = {
    "defaults": {},
    "own heads": {"n_local_attn_heads": 2, "local_attn_window_size": 3},
    "shared vectors": {"shared_qk": True},
    "memory of clusters": {"cluster_num_mem_kv": 2},
    "context": {
        "cross_attend": True, "context_num_clusters": 3, "context_window_size": 2,
        "context_selection": "topk", "cluster_num_mem_kv": 1,
    },
    "bias": {"rel_pos_bias": True, "attn_num_mem_kv": 2},
    "rotation": {"rotary_pos_emb": True, "attn_kv_heads": 2},
    "checkpointed": {"checkpoint": "sublayer"},
    "reversible": {"reversible": True},
}  # fmt: skip


@pytest.mark.parametrize("extra", EXTRA_FLAGS)
def test_cluster_topk_has_every_property(extra):
    subject = Subject({**FLAGS, **EXTRA_FLAGS[extra]})
    assert not failures(subject, checks_of(subject))


@pytest.mark.parametrize("extra", ["defaults", "shared vectors", "context"])
def test_cluster_topk_compiles_and_exports(extra):
    """With rows and contexts shorter and longer than the selection."""
    sizes = {"window_size": 6, "depth": 1}
    if extra == "context":
        sizes["context_window_size"] = 4
    assert not failures(Subject(for_graphs({**FLAGS, **EXTRA_FLAGS[extra], **sizes})), [compiles, exports])


@pytest.mark.parametrize("kind", ["decoder", "prefix_decoder"])
def test_a_causal_model_is_refused_or_warns(kind):
    text = refusal({**FLAGS, "model": kind})
    assert "`routing_selection='topk'` and a causal model cannot be combined" in text
    assert "`routing_selection='leaky'`" in text
    with pytest.warns(UserWarning, match="leaks future tokens"):
        model = flagformer.build({**TOPK, "model": kind, "routing_selection": "leaky"})
    assert not model.can_cache
    with pytest.raises(ValueError, match="attends to later tokens"):
        model.init_state(1, 8)
    assert "no, because tokens attend to later ones" in model.explain()


def test_a_causal_model_selects_from_its_context():
    """With memory of clusters; `cluster_num_mem_kv` is refused where blocks belong to several clusters."""
    crossed = {"cross_attend": True, "context_num_clusters": 3, "context_window_size": 2}
    subject = Subject({**settings(), **TINY, **crossed, "cluster_num_mem_kv": 2})
    assert not failures(subject, checks_of(subject))
    text = refusal({**settings(), **TINY, **crossed, "context_selection": "topk"})
    assert "`context_selection='topk'` and a causal model cannot be combined" in text
    text = refusal({**TOPK, "cluster_num_mem_kv": 2})
    assert "`cluster_num_mem_kv` and `routing_selection='recent'` cannot be combined" in text
    text = refusal({**settings(), **TINY, **crossed, "context_shared_qk": True, "cross_attn_dim_context": 6})
    assert "`context_shared_qk` and `cross_attn_dim_context` cannot be combined" in text


def test_the_warning_is_correct():
    """The test for leaks would find one in the default selection too."""
    ids = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 12:] = (ids[:, 12:] + 1) % 11
    moved = {}
    for selection in ("recent", "leaky"):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = flagformer.build({**TOPK, "routing_selection": selection}).double().eval()
        with torch.no_grad():
            moved[selection] = (model(ids) - model(other))[:, :12].abs().max()
    assert moved["recent"] < 1e-12
    assert moved["leaky"] > 1e-3

"""The estimated memory of a trial against that of its process."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import flagformer
from flagformer.lab.study.costs import recomputed_bytes, saved_bytes
from flagformer.lab.study.footprint import PROCESS, bytes_of
from flagformer.lab.study.pool import Pool
from flagformer.lab.study.run import PRELOAD
from flagformer.lab.train.config import Trial
from flagformer.lab.train.memory import STATUS
from flagformer.lab.train.trial import run_trial

KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "window": {"attn_max_attend_past": 64, "rotary_pos_emb": True},
    "local": {"n_local_attn_heads": 2, "local_attn_window_size": 64},
    "routing": {"num_clusters": 8, "window_size": 64},
    "reversible": {"reversible": True},
    "checkpointed": {"checkpoint": "sublayer"},
    "memories": {"max_mem_len": 128, "rotary_pos_emb": True},
}


def trial(kind: str) -> Trial:
    """One step of 16 rows of 512 tokens: most of the memory is tensors."""
    train = {"steps": 1, "warmup": 0, "batch_size": 16, "device": "cpu"}
    return Trial.model_validate({
        "flags": {"dim": 128, "depth": 2, "heads": 4, **KINDS[kind]},
        "data": {"source": "copy", "symbols": 250, "seq_len": 512},
        "train": {**train, "segment": 128} if kind == "memories" else train,
        "evaluate": {"batches": 1},
    })  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """`peak_memory_bytes` of each kind, each in its own process, as in a study."""
    pool: Pool[str] = Pool(run_trial, 1, 1, PRELOAD)
    found = {}
    for kind in KINDS:
        place = tmp_path_factory.mktemp(kind)
        pool.start(kind, trial(kind), place)
        while pool.running:
            assert all(ended.failure is None for ended in pool.ended(1.0))
        found[kind] = json.loads((place / "result.json").read_text())["cost"]["peak_memory_bytes"]
    return found


@pytest.mark.skipif(not STATUS.exists(), reason="the rise of memory is known on Linux only")
@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_bounds_the_memory_of_a_trial(kind: str, measured: dict[str, int]) -> None:
    """At most the estimate, by which trials are started concurrently; at least half of the estimate
    for tensors, because activations of a backward do not all live at the same time."""
    estimate = bytes_of(trial(kind))
    assert (estimate - PROCESS) / 2 < measured[kind] < estimate


@pytest.mark.parametrize("flags", [{"reversible": True}, {"checkpoint": "sublayer"}])
def test_recomputation_counts_one_sublayer(flags: dict[str, Any]) -> None:
    ids = torch.zeros(2, 64, dtype=torch.long, device="meta")

    def built(**more: Any) -> Any:
        with torch.device("meta"):
            return flagformer.build({"dim": 32, "heads": 2, "num_tokens": 9, "max_seq_len": 64, **more})

    one, deep = (recomputed_bytes(built(depth=depth, **flags), ids) for depth in (1, 6))
    assert one == deep > 0
    assert recomputed_bytes(built(depth=6), ids) == 0
    assert one < saved_bytes(built(depth=1), ids)

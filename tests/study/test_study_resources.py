"""The number of concurrent trials: by cores, by memory, by the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import flagformer
from flagformer.lab.objectives import token_losses
from flagformer.lab.study import resources, run
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.costs import saved_bytes
from flagformer.lab.study.design import Study
from flagformer.lab.study.file import load_study
from flagformer.lab.study.footprint import trial_bytes
from flagformer.lab.study.resources import GIB, share_out


@pytest.fixture
def study(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """The tiny study of two variants on a machine of 8 cores and 64 GiB, with the given requests."""
    monkeypatch.setattr(resources, "count_cores", lambda: 8)
    monkeypatch.setattr(resources, "free_memory", lambda swap: 64 * GIB)

    def changed(*overrides: str) -> Study:
        return load_study(tiny, ["concurrency=null", "threads=null", "seeds=20", *overrides])[0]

    return changed


@pytest.mark.parametrize(
    ("overrides", "at_once", "threads", "why"),
    [
        ([], 8, 1, "8 cores"),
        (["seeds=1"], 2, 4, "8 cores"),
        (["threads=2"], 4, 2, "8 cores"),
        (["threads=16"], 1, 16, "8 cores"),
        (["memory=20"], 2, 4, "64.0 GiB of free memory"),
        (["memory=200"], 1, 8, "64.0 GiB of free memory"),
        (["memory=20", "concurrency=3"], 3, 2, "set by `concurrency`"),
        (["concurrency=5", "threads=3"], 5, 3, "set by `concurrency`"),
    ],
)
def test_cores_and_memory_are_divided(study, overrides, at_once, threads, why):
    found = share_out(study(*overrides))
    assert (found.at_once, found.threads, found.why) == (at_once, threads, why)


def test_a_system_without_memory_figures_divides_cores(study, monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda swap: None)
    assert share_out(study("memory=200")).at_once == 8


def test_gpus_are_requested_from_ray_only(study):
    with pytest.raises(StudyFileError, match="`gpus` must be left out with `executor: local`"):
        study("gpus=1")
    assert study("executor=ray", "gpus=0.5").gpus == 0.5


def test_estimated_saved_bytes_equal_those_of_autograd():
    """On a device with memory the same hooks record the same bytes."""
    flags = {"model": "decoder", "num_tokens": 9, "max_seq_len": 16, "dim": 32, "depth": 2, "heads": 2}
    with torch.device("meta"):
        estimated = saved_bytes(flagformer.build(flags), torch.zeros(4, 16, dtype=torch.long))
    model, storages = flagformer.build(flags), {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(4, 16, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = token_losses(model(ids), ids).sum()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    saved = sum(t.untyped_storage().nbytes() for key, t in storages.items() if key not in weights)
    assert loss.requires_grad
    # the fused kernel of a CPU saves one sum a row where the eager one, on meta, saves all weights
    assert saved * 0.9 < estimated < saved * 1.5


def test_a_larger_variant_or_batch_needs_more(study):
    small = trial_bytes(study())
    assert trial_bytes(study("compare.rotary.dim=512")) > small + 2**20
    assert trial_bytes(study("train.batch_size=4096")) > 2 * small
    assert trial_bytes(study("train.batch_size=4096", "train.accumulate=1024")) == small


def test_overrides_of_a_variant_and_tuning_count_too(study):
    small = trial_bytes(study())
    own = ["match=none", "compare.rotary.train.batch_size=4096"]
    assert trial_bytes(study(*own)) > 2 * small
    assert trial_bytes(study("tune.dim=[16, 512]")) > small + 2**20
    assert trial_bytes(study("tune.lr=[1e-3, 1e-2]")) == small


@pytest.mark.parametrize(("overrides", "at_once"), [([], 8), (["threads=3"], 2), (["executor=ray"], 8)])
def test_audits_use_the_cores_of_this_machine(study, tmp_path, monkeypatch, overrides, at_once):
    asked = []
    monkeypatch.setattr(run, "count_cores", lambda: 8)
    monkeypatch.setattr(run, "run_audits", lambda *words: asked.append(words[2]))
    found = study(*overrides)
    given = share_out(found)
    run._audit_variants(found, tmp_path, {"trials_at_once": given.at_once, "threads": given.threads}, print)
    assert asked == [at_once]

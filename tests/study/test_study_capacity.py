"""A study or a training that exceeds this machine is refused before it starts, with the figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flagformer.lab.cli.main import app
from flagformer.lab.study import capacity
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.resources import GIB
from flagformer.lab.study.run import prepare

TRAIN = """
base: {dim: 16, depth: 1, heads: 2}
data: {source: copy, symbols: 8, seq_len: 12}
train: {steps: 2, warmup: 1, batch_size: 4}
"""
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


@pytest.fixture(autouse=True)
def two_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "whole_memory", lambda: 2 * GIB)


def refused(file: Path, *overrides: str) -> str:
    with pytest.raises(StudyFileError) as caught:
        prepare(file, overrides)
    return str(caught.value)


@no_cuda
def test_a_missing_device_is_refused_at_its_line(tiny: Path) -> None:
    found = refused(tiny, "train.device=cuda")
    assert "`train.device` must be auto or cpu here, but is cuda: torch finds no CUDA device" in found
    own = refused(tiny, "compare.rotary.train.device=cuda")
    assert own.startswith("override `compare.rotary.train.device=cuda`")


@pytest.mark.parametrize("device", ["mps", "cuda:3"])
def test_a_device_that_is_not_supported_is_refused(tiny: Path, device: str) -> None:
    assert f"but is '{device}'" in refused(tiny, f"train.device={device}")


def test_a_trial_larger_than_the_machine_is_refused_with_both_figures(tiny: Path) -> None:
    found = refused(tiny, "base.dim=2048", "base.depth=8")
    assert re.search(r"variant `learned` needs about [3-9]\.\d GiB", found)
    assert "GiB of memory, but this machine has 2.0 GiB; lower `batch_size`" in found
    assert "`rotary` needs about" in found
    only = refused(tiny, "compare.rotary.dim=2048", "compare.rotary.depth=8", "match=none")
    assert "`rotary` needs" in only
    assert "`learned`" not in only
    assert "`rotary` needs" in refused(tiny, "tune.dim=[16, 4096]", "match=none")


def test_memory_given_in_the_file_overrides_the_estimate(tiny: Path) -> None:
    assert prepare(tiny, ["base.dim=2048", "base.depth=8", "memory=1.5", "concurrency=null"]).costs
    found = refused(tiny, "memory=3")
    assert found == (
        "override `memory=3`: `memory` is too large: a trial needs about 3.0 GiB of memory, but this machine "
        "has 2.0 GiB"
    )


def test_concurrent_trials_that_do_not_fit_are_refused(tiny: Path) -> None:
    assert prepare(tiny, ["memory=1", "concurrency=2"]).costs
    found = refused(tiny, "memory=1", "concurrency=3", "seeds=3")
    assert "3 trials of about 1.0 GiB each need about 3.0 GiB of memory, but this machine has 2.0" in found
    assert prepare(tiny, ["memory=1", "concurrency=30", "seeds=1"]).costs, "two trials are never thirty"


def test_a_cluster_has_its_own_memory_and_devices(tiny: Path) -> None:
    pytest.importorskip("ray")
    assert prepare(tiny, ["executor=ray", "memory=100", "train.device=cuda"]).costs


def test_a_system_without_memory_figures_refuses_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "whole_memory", lambda: None)
    assert prepare(tiny, ["memory=1000"]).costs


@pytest.mark.parametrize(
    ("override", "words"),
    [
        pytest.param("train.device=cuda", "torch finds no CUDA device", marks=no_cuda),
        ("train.batch_size=400000", "but this machine has 2.0 GiB; lower `batch_size`"),
    ],
)
def test_train_refuses_equally_and_leaves_no_files(tmp_path: Path, override: str, words: str) -> None:
    file, out = tmp_path / "t.yaml", tmp_path / "run"
    file.write_text(TRAIN)
    found = CliRunner().invoke(app, ["train", str(file), override, "--out", str(out)])
    assert found.exit_code == 2
    assert words in " ".join(found.stderr.split())
    assert not out.exists()

"""Trials on a Ray cluster: workers and nodes die, and the table equals that of an uninterrupted run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_study import TINY, StudyProcess, descendants, finished, logged, table, trainer, until

from flagformer.lab.study.cluster import (
    Resources,
    TaskSpec,
    _write_files,
    check_reachable,
    import_ray,
    run_here,
    versions,
)
from flagformer.lab.study.run import prepare, run_study
from flagformer.lab.train.trial import run_trial
from forked import server

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not Path("/proc/self/environ").exists(),
    reason="needs the package ray (pip install 'flagformer[ray]') and Linux",
)
STEPS = "train.steps=800"
# Ray's workers are at niceness 15, and starve where other tests run.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, Any]]:
    """Three nodes of one core, started once; "raylets" lists those of two of them, which may be killed."""
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, str(here / "ray_cluster.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **SETTINGS, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(timeout=60)


@needs_ray
@pytest.mark.slow
def test_tuned_matched_and_audited_it_equals_one_machine(tiny: Path, tmp_path: Path, cluster) -> None:
    tiny.write_text(
        TINY.replace("rotary: {rotary_pos_emb: true, use_abs_pos_emb: false}", "gated: {ff_glu: true}")
    )
    design = ["audit=true", "tune.lr=[1e-3, 1e-2]", "match=params", "train.steps=30", "seeds=1"]
    there = {"RAY_ADDRESS": cluster["address"], "PYTHONPATH": os.pathsep.join(sys.path)}
    words = (*design, "executor=ray", "concurrency=null")
    status, errors = StudyProcess(tiny, tmp_path / "out", *words, **there).wait()
    assert status == 0, errors
    run_study(prepare(tiny, design), tmp_path / "here", Console(file=io.StringIO()))
    mine, theirs = table(tmp_path / "out"), table(tmp_path / "here")
    assert len(mine["trials"]) == 4
    assert mine["rows"] == theirs["rows"]
    assert mine["trials"] == theirs["trials"]
    assert all(row["tuned"] and row["stamp"]["found"] for row in mine["rows"])


@needs_ray
@pytest.mark.slow
def test_the_loss_of_a_worker_and_of_a_node_changes_nothing(tiny: Path, tmp_path: Path, cluster) -> None:
    out = tmp_path / "out"
    trials = [out / "trials" / run.trial.id for run in prepare(tiny, [STEPS]).study.runs]
    python_path = os.pathsep.join(sys.path)

    def start(*overrides: str) -> StudyProcess:
        there = {"RAY_ADDRESS": cluster["address"], "PYTHONPATH": python_path}
        return StudyProcess(tiny, out, "executor=ray", "concurrency=null", *overrides, **there)

    study = start(STEPS)
    doomed, lone = cluster["raylets"]
    worker = until(lambda: trained_by(trials, lone))
    os.kill(worker, signal.SIGKILL)
    until(lambda: trained_by(trials, doomed))
    kept = finished(out)
    node = descendants(doomed)
    for pid in node:  # parents first: a worker orphaned by a raylet would count as another loss
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status, errors = study.wait()
    assert status == 0, errors
    assert errors.count("attempt 2 follows") + errors.count("attempt 3 follows") == 2, errors
    assert finished(out).items() >= kept.items()
    assert len(finished(out)) == 4

    run_study(prepare(tiny, [STEPS]), tmp_path / "undisturbed")
    mine, theirs = table(out), table(tmp_path / "undisturbed")
    assert mine["rows"] == theirs["rows"]
    assert mine["trials"] == theirs["trials"]
    assert not (out / "study.token").exists()


def trained_by(trials: list[Path], raylet: int) -> int | None:
    """A worker of this node in the middle of a trial."""
    workers = descendants(raylet)
    for trial in trials:
        if logged(trial) >= 30 and not (trial / "result.json").exists() and (pid := trainer(trial, workers)):
            return pid
    return None


def order_of(tiny: Path, out: Path, **changes: Any) -> TaskSpec:
    trial = prepare(tiny, ["train.steps=6"]).study.runs[0].trial
    place = out / "trials" / trial.id
    plain = {"threads": 1, "versions": versions(), "data": trial.source.fingerprint(), "token": "mine"}
    return TaskSpec(run_trial, trial, place, Path.cwd(), **{**plain, **changes})


def elsewhere(order: TaskSpec) -> Any:
    """The answer of a node, in its own process, as it changes its folder and its output."""
    with server().Pool(1) as pool:
        return pool.apply(run_here, (order,))


def test_a_node_with_the_shared_directory_trains_there(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "study.token").write_text("mine")
    order = order_of(tiny, tmp_path)
    assert elsewhere(order) == ({}, None)
    assert (order.directory / "result.json").exists()


def test_a_node_without_it_sends_its_files_back(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "study.token").write_text("another study's")
    order = order_of(tiny, tmp_path)
    files, failure = elsewhere(order)
    assert failure is None
    assert not order.directory.exists()
    _write_files(files, order.directory)
    torch.set_num_threads(1)
    whole = run_trial(order.trial, tmp_path / "whole")
    result = json.loads((order.directory / "result.json").read_text())
    assert result["evaluation"] == whole["evaluation"]
    weights = [
        (place / "model" / "model.safetensors").read_bytes()
        for place in (order.directory, tmp_path / "whole")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"versions": {**versions(), "torch": "1.0"}},
            ("has torch", "but the study has 1.0; install the same"),
        ),
        ({"data": "abc"}, ("has other data", "that of the study is abc")),
    ],
)
def test_a_node_that_differs_is_refused(tiny: Path, tmp_path: Path, changes, words) -> None:
    files, failure = elsewhere(order_of(tiny, tmp_path, **changes))
    assert failure.kind == "error"
    assert all(word in failure.message for word in words), failure
    assert not any(name.endswith("result.json") for name in files)


def test_concurrent_trials_are_limited_by_the_scarcest_resource() -> None:
    needs = Resources(cpus=2, gpus=0.5, memory=4)
    assert needs.times({"CPU": 16, "GPU": 2, "memory": 100}) == 4
    assert needs.times({"CPU": 16, "GPU": 8, "memory": 9}) == 2
    assert needs.times({"CPU": 16, "memory": 100}) == 0
    assert Resources(cpus=1, gpus=0, memory=4).times({"CPU": 3, "memory": 100}) == 3


def test_an_address_without_a_listener_is_refused_immediately() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        check_reachable(address)
        check_reachable(f"ray://{address}")
    for silent in (address, f"ray://{address}"):
        with pytest.raises(ConnectionRefusedError):
            check_reachable(silent)
    check_reachable("auto")


@needs_ray
def test_a_cluster_without_capacity_for_a_trial_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 63.0, "memory": 2.0**40}}]
    ray = SimpleNamespace(nodes=lambda: nodes, shutdown=lambda: None)
    monkeypatch.setattr("flagformer.lab.study.cluster.connect", lambda: ray)
    prepared, place = prepare(tiny, ["executor=ray", "concurrency=null", "threads=64"]), tmp_path / "run"
    with pytest.raises(ValueError, match="finds no node with 64 cores and"):
        run_study(prepared, place, Console(file=io.StringIO()))
    assert not (place / "trials").exists()


def test_an_unreachable_cluster_is_reported_before_any_audit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening.getsockname()[1]}")
    for module in ("cluster", "run"):
        monkeypatch.setattr(f"flagformer.lab.study.{module}.import_ray", object)
    prepared, place = prepare(tiny, ["executor=ray", "audit=true"]), tmp_path / "run"
    with pytest.raises(ValueError, match="needs a running cluster, but finds none at 127"):
        run_study(prepared, place, Console(file=io.StringIO()), examiner=run_trial)
    assert not (place / "variants").exists()
    assert not (place / "study.yaml").exists()


def test_a_machine_without_ray_names_the_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs the package ray.*pip install 'flagformer\[ray\]'"):
        prepare(tiny, ["executor=ray"])
    with pytest.raises(ValueError, match="needs the package ray"):
        import_ray()

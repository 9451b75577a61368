"""Trackers: the calls they receive, and the error without their package."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flagformer.lab.train import track as module
from flagformer.lab.train.track import track


@pytest.fixture
def run(tmp_path: Path) -> Path:
    place = tmp_path / "run"
    place.mkdir()
    (place / "trial.json").write_text(json.dumps({"id": "a", "train": {"lr": 0.1, "betas": [0.9, 0.95]}}))
    lines = [{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "loss": None, "lr": 0.1}]
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"split": "test", "seq_len": 16, "nats": 1.5, "bits_per_byte": None, "accuracy": 0.25}
    result = {"status": "finished", "steps": 2, "evaluation": [entry], "cost": {"tokens_per_second": 1.0}}
    (place / "result.json").write_text(json.dumps(result))
    return place


def test_a_loss_has_the_name_of_its_unit(run: Path) -> None:
    path = run / "result.json"
    result = json.loads(path.read_text())
    result["evaluation"][0]["unit"] = "squared error"
    path.write_text(json.dumps(result))
    assert module.steps_of(run)[-1] == {"step": 2, "test/squared_error_16": 1.5, "test/accuracy_16": 0.25}


def test_calls_of_a_tracker(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []

    def tell(name: str, settings: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], out: Path) -> None:
        reported.append((name, dict(settings), list(lines), out))

    monkeypatch.setitem(module.TRACKERS, "wandb", tell)
    assert track(run, "wandb") == 1
    [(name, settings, lines, out)] = reported
    assert (name, out) == ("run", run / "track")
    assert settings == {"id": "a", "train.lr": 0.1, "train.betas": "[0.9, 0.95]"}
    assert lines == [
        {"step": 1, "loss": 2.5, "lr": 0.1},
        {"step": 2, "lr": 0.1},
        {"step": 2, "test/nats_16": 1.5, "test/accuracy_16": 0.25},
    ]


@pytest.mark.parametrize(
    ("to", "package", "name"),
    [("tensorboard", "torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb", "wandb"),
     ("mlflow", "mlflow", "mlflow-skinny")],
)  # fmt: skip
def test_an_absent_package_is_named(
    run: Path, to: str, package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"pip install {name}"):
        track(run, to)


def test_untracked_directories_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensorboard, wandb, mlflow"):
        track(run, "paper")
    with pytest.raises(ValueError, match="contains no run"):
        track(tmp_path, "wandb")


def test_tensorboard_gets_every_number(run: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    track(run, "tensorboard")
    events = reader.EventAccumulator(str(run / "track" / "tensorboard" / "run"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5)]
    assert [event.value for event in events.Scalars("test/nats_16")] == [1.5]


def test_mlflow_gets_every_number(run: Path) -> None:
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    track(run, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(run / "track" / "mlflow").resolve().as_uri())
    [found] = client.search_runs([client.get_experiment_by_name("flagformer").experiment_id])
    assert found.data.params["train.lr"] == "0.1"
    assert found.data.metrics["test/nats_16"] == 1.5


def test_wandb_writes_its_files_here(run: Path) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    track(run, "wandb")
    assert list((run / "track").glob("wandb/offline-run-*/*.wandb"))


def grown(run: Path) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 3, "loss": 2.0}) + "\n")


def test_a_run_is_reported_once_and_again_after_a_change(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[str, int]] = []
    killed = [True]

    def tell(name: str, settings: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], out: Path) -> None:
        reported.append((name, len(list(lines))))
        if killed.pop() if killed else False:
            raise KeyboardInterrupt

    monkeypatch.setitem(module.TRACKERS, "wandb", tell)
    with pytest.raises(KeyboardInterrupt):
        track(run, "wandb")
    assert [track(run, "wandb"), track(run, "wandb")] == [1, 0]
    grown(run)
    assert [track(run, "wandb"), track(run, "wandb")] == [1, 0]
    assert reported == [("run", 3), ("run", 3), ("run", 4)]
    assert track(run, "wandb", run / "elsewhere") == 1


def test_only_new_trials_of_a_study_are_reported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setitem(module.TRACKERS, "wandb", lambda name, *rest: names.append(name))
    study = tmp_path / "study"
    for name in ("a", "b", "c"):
        shutil.copytree(run, study / "trials" / name)
        assert track(study, "wandb") == 1
    assert names == ["a", "b", "c"]


def test_two_runs_of_one_name_do_not_replace_each_other(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    monkeypatch.setitem(module.TRACKERS, "wandb", lambda name, *rest: names.append(name))
    other = tmp_path / "other" / "run"
    shutil.copytree(run, other)
    (other / "trial.json").write_text(json.dumps({"id": "b", "train": {"lr": 0.2}}))
    for _ in range(2):
        for place in (run, other):
            track(place, "wandb", tmp_path / "out")
    assert names == ["run", "run-b"]


def test_tensorboard_has_no_duplicates(run: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    track(run, "tensorboard")
    grown(run)
    half = run / "track" / "tensorboard.partial" / "run"  # of a killed call
    half.mkdir(parents=True)
    (half / "events.out.tfevents.1").write_bytes(b"")
    track(run, "tensorboard")
    assert len(list((run / "track").glob("tensorboard/run/*"))) == 1
    events = reader.EventAccumulator(str(run / "track" / "tensorboard" / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 3]


def test_mlflow_has_no_duplicates(run: Path) -> None:
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    for _ in range(2):
        track(run, "mlflow")
        grown(run)
    client = mlflow.MlflowClient(tracking_uri=(run / "track" / "mlflow").resolve().as_uri())
    [found] = client.search_runs([client.get_experiment_by_name("flagformer").experiment_id])
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [1, 3]


def test_wandb_has_no_duplicates(run: Path) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    for _ in range(2):
        track(run, "wandb")
        grown(run)
    assert len(list((run / "track").glob("wandb/offline-run-*/*.wandb"))) == 1

"""Trackers: what they are told, and the word where the package is absent."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flagformer.train import track as module
from flagformer.train.track import track


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


def test_what_a_tracker_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def tell(name: str, settings: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], out: Path) -> None:
        told.append((name, dict(settings), list(lines), out))

    monkeypatch.setitem(module.TRACKERS, "wandb", tell)
    assert track(run, "wandb") == 1
    [(name, settings, lines, out)] = told
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


def test_what_cannot_be_tracked(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensorboard, wandb, mlflow"):
        track(run, "paper")
    with pytest.raises(ValueError, match="holds no run"):
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


def test_wandb_keeps_its_files_here(run: Path) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    track(run, "wandb")
    assert list((run / "track").glob("wandb/offline-run-*/*.wandb"))

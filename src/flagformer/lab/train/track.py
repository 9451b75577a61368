"""Exports the logs of a run to TensorBoard, Weights & Biases or MLflow, which are imported on use.

Every run writes `log.jsonl`, which is exported separately, so that training does not depend on a tracker:
`flagformer track RUN --to tensorboard`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flagformer.lab.train.files import read_record, write_json
from flagformer.lab.train.log import read_log
from flagformer.lab.train.result import read_result, read_settings

Line = Mapping[str, Any]
EXPORT = {"id": str, "digest": str}  # the record of an exported run
Tracker = Callable[[str, Mapping[str, Any], Iterable[Line], Path], None]


def track(run: Path, to: str, out: Path | None = None) -> int:
    """Export the steps of the run in the directory `run`, or of every trial of a study, to a tracker.

    Unchanged runs are not exported again; a changed run (new steps, a result, an interrupted export) replaces
    its earlier export.

    Args:
        to: tensorboard, wandb or mlflow.
        out: the directory of the tracker's files; default `RUN/track`. Nothing is sent over the network
            unless the tracker is configured for it: wandb writes offline, mlflow to a file store.

    Returns:
        The number of exported runs.

    Raises:
        ValueError: an unknown tracker, a missing package, or a directory without a run.
    """
    if to not in TRACKERS:
        raise ValueError(f"`to` must be one of {', '.join(TRACKERS)}, but is {to!r}")
    runs = (
        [run]
        if (run / "trial.json").exists()
        else sorted(path.parent for path in run.glob("trials/*/trial.json"))
    )
    if not runs:
        raise ValueError(f"{run} contains no run (no trial.json) and no study with trials")
    return sum(_export(directory, to, out or run / "track") for directory in runs)


def _export(run: Path, to: str, out: Path) -> bool:
    """Export a run; return False if the tracker has it already."""
    settings, lines = flattened(read_settings(run / "trial.json")), steps_of(run)
    digest = hashlib.sha256(json.dumps([settings, lines]).encode()).hexdigest()
    name = run.name
    exported = _exported(out, to, name)
    if exported and exported["id"] != settings["id"]:  # another run with the same name
        name = f"{run.name}-{settings['id']}"
        exported = _exported(out, to, name)
    if exported and exported["digest"] == digest:
        return False
    path = _record(out, to, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"id": settings["id"], "digest": ""})  # reserves the name before the export
    TRACKERS[to](name, settings, lines, out)
    write_json(path, {"id": settings["id"], "digest": digest})
    return True


def _record(out: Path, to: str, name: str) -> Path:
    return out / "exported" / to / f"{name}.json"


def _exported(out: Path, to: str, name: str) -> dict[str, Any]:
    path = _record(out, to, name)
    return read_record(path, EXPORT) if path.exists() else {}


def steps_of(run: Path) -> list[Line]:
    """The metrics of every step, and those of the result as the last line."""
    path = run / "log.jsonl"
    lines = [numbers(line) for line in (read_log(path) if path.exists() else [])]
    if (run / "result.json").exists():
        result = read_result(run / "result.json")
        measured = {
            f"{entry['split']}/{_heading(entry, key)}_{entry['seq_len']}": entry[key]
            for entry in result["evaluation"]
            for key in ("nats", "bits_per_byte", "accuracy")
        }
        lines.append(numbers({"step": result["steps"], **measured}))
    return lines


def _heading(entry: Line, key: str) -> str:
    """The name of a figure: the loss has the name of its unit."""
    return str(entry.get("unit", key)).replace(" ", "_") if key == "nats" else key


def numbers(line: Line) -> Line:
    """The numeric values of a line; a loss that is not finite is omitted."""
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{train: {lr: 1}}` -> `{train.lr: 1}`; lists as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        found |= {name: v if isinstance(v, int | float | str) else str(v) for name, v in inner.items()}
    return found


def _package(name: str, needs: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"this needs the package {needs}: pip install {needs} ({error})") from None


def _tensorboard(name: str, settings: Mapping[str, Any], lines: Iterable[Line], out: Path) -> None:
    final, fresh = out / "tensorboard" / name, out / "tensorboard.partial" / name
    module = _package("torch.utils.tensorboard", "tensorboard")
    shutil.rmtree(fresh, ignore_errors=True)
    writer = module.SummaryWriter(str(fresh))
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))
    for line in lines:
        for key, value in line.items():
            if key != "step":
                writer.add_scalar(key, value, line["step"])
    writer.close()
    # atomically replaces the earlier export: TensorBoard merges all files of a directory
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    fresh.replace(final)


def _wandb(name: str, settings: Mapping[str, Any], lines: Iterable[Line], out: Path) -> None:
    wandb = _package("wandb", "wandb")
    out.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{settings['id']} {name}".encode()).hexdigest()[:16]
    for before in out.glob(f"wandb/offline-run-*-{key}"):
        shutil.rmtree(before)
    run = wandb.init(
        project="flagformer",
        id=key,
        name=name,
        config=dict(settings),
        dir=str(out),
        mode="offline",
        reinit="finish_previous",
    )
    for line in lines:
        run.log({key: value for key, value in line.items() if key != "step"}, step=int(line["step"]))
    run.finish()


def _mlflow(name: str, settings: Mapping[str, Any], lines: Iterable[Line], out: Path) -> None:
    mlflow = _package("mlflow", "mlflow-skinny")
    (out / "mlflow").mkdir(parents=True, exist_ok=True)
    # a file store needs no database with mlflow-skinny; since version 3.7 it must be enabled explicitly
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(out / "mlflow").resolve().as_uri())
    found = client.get_experiment_by_name("flagformer")
    experiment = found.experiment_id if found else client.create_experiment("flagformer")
    for before in client.search_runs([experiment]):
        if before.info.run_name == name:
            client.delete_run(before.info.run_id)
    run = client.create_run(experiment, run_name=name).info.run_id
    for key, value in settings.items():
        client.log_param(run, key, str(value)[:500])
    for line in lines:
        for key, value in line.items():
            if key != "step":
                client.log_metric(run, key, value, step=int(line["step"]))
    client.set_terminated(run)


TRACKERS: dict[str, Tracker] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}

"""Checkpoints and results of another form: named by file and difference; those of trials are accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trial import tiny

from flagformer.lab.cli.generate import load_model
from flagformer.lab.study.read_results import last_line
from flagformer.lab.train import checkpoint
from flagformer.lab.train.checkpoint import CURRENT, PREVIOUS, read_checkpoint, write_checkpoint
from flagformer.lab.train.log import read_log
from flagformer.lab.train.result import read_result, read_settings
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished") / "run"
    run_trial(tiny(), place)
    return place


def stopped(directory: Path, **changes: Any) -> Path:
    with pytest.raises(Killed):
        run_trial(tiny(**changes), directory, killer(7))
    return directory / CURRENT


def test_files_of_a_trial_are_read(finished: Path, tmp_path: Path) -> None:
    result = read_result(finished / "result.json", whole=True)
    assert result == json.loads((finished / "result.json").read_text())
    assert read_settings(finished / "trial.json")["train"]["precision"] == "fp32"
    assert len(read_log(finished / "log.jsonl")) == last_line(finished)["step"] == result["steps"]
    diverged = run_trial(tiny(train={"lr": 1e3, "warmup": 0, "clip": 0, "weight_decay": 10}), tmp_path)
    assert read_result(tmp_path / "result.json", whole=True) == diverged


def refusal(path: Path) -> str:
    """The error of `read_result` for a file; empty if it is valid."""
    try:
        read_result(path, whole=True)
    except ValueError as error:
        return str(error)
    return ""


def every_entry(value: Any, route: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of a result."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        *([route] if route else []),
        *(r for key, item in inner for r in every_entry(item, (*route, key))),
    ]


def test_every_entry_of_another_type_is_named_or_unused(finished: Path, tmp_path: Path) -> None:
    good = json.loads((finished / "result.json").read_text())
    refused = set()
    for route in every_entry(good):
        content = json.loads(json.dumps(good))
        place = content
        for key in route[:-1]:
            place = place[key]
        place[route[-1]] = {"another": "shape"} if not isinstance(place[route[-1]], dict) else ["a", "list"]
        path = tmp_path / "result.json"
        path.write_text(json.dumps(content))
        said = refusal(path)
        if said:
            refused.add(route[0])
            assert str(path) in said
            assert "`" + ".".join(map(str, route)) in said
    assert refused == {"status", "steps", "params", "evaluation", "metric", "cost", "machine", "notes",
                       "validation_nats"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "must be a JSON object"),
        ('{"status": ', "is damaged"),
        ('{"status": NaN}', "NaN is not valid JSON"),
        ('{"status": "finished"}', "`steps` is missing"),
        ('{"status": "won", "steps": 1, "evaluation": [], "cost": {"tokens_per_second": 1}}', "but is 'won'"),
        (
            '{"status": "finished", "steps": 1, "evaluation": [], "cost": {"tokens_per_second": 1}}',
            "must not be empty",
        ),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_a_damaged_result_is_named_by_every_reader(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    for read in (lambda: read_result(path), lambda: load_model(tmp_path)):
        with pytest.raises(ValueError, match=r"result\.json is damaged") as caught:
            read()
        assert said in str(caught.value)


def test_a_malformed_last_line_of_a_log_is_ignored(tmp_path: Path) -> None:
    for line in ("[1]", '{"step": "x"}', '{"step": null}', "{", '{"loss": 1}'):
        (tmp_path / "log.jsonl").write_text(line + "\n")
        assert last_line(tmp_path) == {}


def other_names(held: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    return replace(held, model={f"module.{name}": value for name, value in held.model.items()})


def other_shapes(held: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    return replace(held, model={name: value[..., :1] for name, value in held.model.items()})


def other_moments(held: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    state = {
        key: {name: value[..., :1] if value.ndim else value for name, value in one.items()}
        for key, one in held.optimizer["state"].items()
    }
    return replace(held, optimizer={**held.optimizer, "state": state})


def other_groups(held: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    return replace(held, optimizer={**held.optimizer, "param_groups": held.optimizer["param_groups"][:1]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_names, "the model has no `"),
        (other_shapes, ", 1] in the checkpoint and ["),
        (other_moments, "`exp_avg` of a parameter of shape"),
        (other_groups, "group"),
        (lambda held: replace(held, trial="0" * 12), "was trained on another trial (000000000000 in"),
        (lambda held: replace(held, data="0" * 16), "was trained on another data (0000000000000000 in"),
    ],
)
def test_a_checkpoint_of_another_program_is_named(
    change: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    path = stopped(tmp_path)
    write_checkpoint(path, change(read_checkpoint(path)))
    with pytest.raises(ValueError, match=CURRENT) as caught:
        run_trial(tiny(), tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "use another directory or delete this one" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [[1], {}, {"model": {}}, torch.ones(2)],
    ids=["a list", "empty", "weights", "a tensor"],
)
def test_a_malformed_checkpoint_is_damaged(content: Any, tmp_path: Path, monkeypatch) -> None:
    path = stopped(tmp_path)
    monkeypatch.setattr(checkpoint, "asdict", lambda held: content)
    write_checkpoint(path, None)  # type: ignore[arg-type]
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(ValueError, match="is damaged") as caught:
        run_trial(tiny(), tmp_path)
    assert str(path) in str(caught.value)

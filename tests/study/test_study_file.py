"""The meaning of a resolved study file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_study import TINY

from flagformer.lab.study.file import load_study, resolve_study
from flagformer.lab.study.source import parse_source


def test_yaml_words_and_numbers() -> None:
    text = "a: 1e-3\nb: no\nc: on\nd: 0x10\ne: 1:30\nf: 2024-01-01\ng: -.5\nh: ~\ni: 007\nno: true\n"
    assert parse_source(text, "x").data == {
        "a": 0.001, "b": "no", "c": "on", "d": "0x10",
        "e": "1:30", "f": "2024-01-01", "g": -0.5, "h": None, "i": 7, "no": True,
    }  # fmt: skip


def test_lines_are_those_of_the_keys() -> None:
    source = parse_source("a:\n  b: 1\n\n  c: [1,\n   2]\n", "x")
    assert source.lines[("a", "b")] == 2
    assert source.lines[("a", "c")] == 4
    assert source.lines[("a", "c", "1")] == 5


def test_defaults_overrides_and_seeds(tiny: Path) -> None:
    study, _ = load_study(
        tiny, ["train.steps=9", "seeds=[4, 2]", "compare.alibi={alibi_pos_bias: true}", "base.ff_mult=2"]
    )
    assert study.train.steps == 9
    assert study.seeds == (4, 2)
    assert study.baseline == "learned"
    assert study.variants["alibi"] == {
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "ff_mult": 2,
        "alibi_pos_bias": True,
    }
    assert [(run.variant, run.seed) for run in study.runs] == [
        ("learned", 4), ("rotary", 4), ("alibi", 4), ("learned", 2), ("rotary", 2), ("alibi", 2),
    ]  # fmt: skip


def test_the_resolved_file_is_the_same_study(tiny: Path) -> None:
    study, _ = load_study(tiny)
    text = yaml.safe_dump(study.resolved(), sort_keys=False)
    again = resolve_study(parse_source(text, "study.yaml"))
    assert again == study
    assert [run.trial.id for run in again.runs] == [run.trial.id for run in study.runs]


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("train.steps=201", False),
        ("data.symbols=9", False),
        ("evaluate.batches=3", False),
        ("base.dim=32", False),
        ("name=other", True),
        ("compare.more={alibi_pos_bias: true}", True),
        ("seeds=3", True),
        ("concurrency=1", True),
    ],
)
def test_a_trial_id_depends_on_the_inputs_of_its_result(tiny: Path, override: str, same: bool) -> None:
    before, after = load_study(tiny)[0].runs, load_study(tiny, [override])[0].runs
    shared = {run.trial.id for run in before} & {run.trial.id for run in after}
    assert len(shared) == (len(before) if same else 0)


def test_trial_ids_differ_between_all_trials(tiny: Path) -> None:
    ids = [run.trial.id for run in load_study(tiny)[0].runs]
    assert len(set(ids)) == 4


def test_a_null_variant_is_the_base() -> None:
    study = resolve_study(parse_source(TINY.replace("learned: {}", "learned:"), "x"))
    assert study.compare["learned"] == {}

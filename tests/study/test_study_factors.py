"""Factorial studies: cells, effects and interactions, by hand, planted and simulated."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from flagformer.lab.study.cells import contrasts
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.directory import read_study, write_setting, write_study
from flagformer.lab.study.file import load_study
from flagformer.lab.study.read_results import read_results
from flagformer.lab.study.report import NOTE, render
from flagformer.lab.study.report.interactions import csv_effects, interaction_plot
from flagformer.lab.study.report.texts import markdown
from flagformer.lab.study.results import as_json
from flagformer.lab.study.run import prepare
from flagformer.lab.study.table import effects_table, legend
from flagformer.lab.study.verdicts import LEVEL, judge

NOISE = np.random.default_rng(0).normal(size=(64, 8))


def test_the_contrasts_by_hand() -> None:
    found = {(one.kind, one.name): one.weights for one in contrasts({"depth": [2, 4]})}
    assert found == {
        ("cell", "depth=2"): (1, 0), ("cell", "depth=4"): (0, 1), ("main", "mean of 2 cells"): (0.5, 0.5),
        ("interaction", "depth=4 against 2"): (-1, 1),
    }  # fmt: skip
    two = contrasts({"depth": [2, 4], "train.lr": [0.1, 0.2, 0.3]})  # cells: 2 0.1, 2 0.2, 2 0.3, 4 0.1, ...
    found = {one.name: one.weights for one in two}
    assert len(two) == 6 + 1 + 1 + 3
    assert found["depth=4 against 2"] == pytest.approx([-1 / 3] * 3 + [1 / 3] * 3)
    assert found["lr=0.2 against 0.1 and 0.3"] == pytest.approx([-1 / 4, 1 / 2, -1 / 4] * 2)
    assert all(sum(one.weights) == pytest.approx(float(one.kind != "interaction"), abs=1e-12) for one in two)


@pytest.mark.parametrize(
    "typed", ["base.depth=1,2", "factors={depth: [1, 2]}", "factors={base.depth: [1, 2]}"]
)
def test_a_sweep_makes_a_factor(tiny: Path, tmp_path: Path, typed: str) -> None:
    study, _ = load_study(tiny, [typed])
    assert (study.factors, study.cells) == ({"depth": [1, 2]}, ["depth=1", "depth=2"])
    assert list(study.compare) == ["learned depth=1", "learned depth=2", "rotary depth=1", "rotary depth=2"]
    assert (study.reference, study.contenders) == ("learned", ["learned", "rotary"])
    assert study.baseline_of("rotary depth=2") == "learned depth=2"
    assert study.level == pytest.approx(LEVEL / 4)
    write_study(tmp_path, study)
    assert read_study(tmp_path) == study


def test_variants_are_matched_in_their_cell(tiny: Path) -> None:
    """Depth doubles the parameters; each cell has its own baseline."""
    overrides = [
        "match=params",
        "compare={plain: {}, gated: {ff_glu: true}}",
        "base.dim=64",
        "base.depth=1,2",
    ]
    prepared = prepare(tiny, overrides)
    amounts = {name: cost.params for name, cost in prepared.costs.items()}
    assert amounts["plain depth=2"] > 1.3 * amounts["plain depth=1"]
    assert set(prepared.matched) == {"gated depth=1", "gated depth=2"}
    for cell in prepared.study.cells:
        assert amounts[f"gated {cell}"] == pytest.approx(amounts[f"plain {cell}"], rel=0.02)
    assert prepared.origins["compare.gated depth=2.depth"] == "override base.depth=1,2"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["compare={one: {}}", "factors={depth: [1, 2]}"],
            "`factors` needs `compare` with at least two variants",
        ),
        (
            ["factors={data.seq_len: [16, 32]}"],
            "`factors.data.seq_len` cannot vary: all variants share `data`",
        ),
        (["factors={depth: [1, 2]}", "compare={a depth=1: {}, b depth=2: {}}"], "each variant in every cell"),
        (
            ["factors={rotary_pos_emb: [true, false]}"],
            "`compare.rotary` and `factors` both set `rotary_pos_emb`",
        ),
        (["factors={depth: 2}"], "`factors.depth` must be a list of values to try"),
    ],
)
def test_invalid_factors(tiny: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(words)):
        load_study(tiny, overrides)


def finish(path: Path, out: Path, diverged: str = "") -> None:
    """Invented losses: rotary differs at depth 2 alone, alibi in no cell."""
    study, _ = load_study(
        path, ["base.depth=1,2", "seeds=5", "compare.alibi={alibi_pos_bias: true}", "margin=0.2"]
    )
    out.mkdir()
    write_study(out, study)
    write_setting(out, {"variants": {}})
    for index, run in enumerate(study.runs):
        nats = 2.0 + 0.05 * NOISE.flat[index] - 0.5 * (run.variant == "rotary depth=2")
        entries = [
            {"split": "test", "seq_len": n, "nats": nats, "bits_per_byte": None, "accuracy": 0.5}
            for n in (16, 32)
        ]
        bad = (run.variant, run.seed) == (diverged, 0)
        result = {
            "status": "diverged" if bad else "finished", "steps": 1, "evaluation": [] if bad else entries,
            "notes": [], "cost": {"tokens_per_second": 10.0}, "machine": {},
        }  # fmt: skip
        folder = out / "trials" / run.trial.id
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')


def test_a_planted_interaction_is_found_and_named(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(tiny, out)
    results = read_results(out)
    verdicts = {(one.variant, one.name): one.difference.verdict for one in results.effects}
    assert verdicts["rotary", "depth=2"] == "better"
    assert verdicts["rotary", "depth=2 against 1"] == "changes"
    assert verdicts["rotary", "mean of 2 cells"] == "better"
    assert verdicts["rotary", "depth=1"] == "equivalent"
    assert verdicts["alibi", "depth=2"] == "equivalent"
    rotary = next(
        one for one in results.effects if one.name == "depth=2 against 1" and one.variant == "rotary"
    )
    assert rotary.difference.estimate.mean == pytest.approx(-0.5, abs=0.1)
    assert results.row("rotary depth=2").difference.verdict == "better"
    assert results.row("learned depth=2").difference is None
    [said] = [line for line in legend(results) if line.startswith("On average")]
    assert "Interactions: the effect changes with the factor for rotary (depth=2 against 1: " in said
    assert effects_table(results).row_count == 2 * 4
    page, text = render(results, []), markdown(results, NOTE)
    for whole in (page, text):
        assert "interaction: depth=2 against 1" in whole
        assert "Effects and interactions" in whole
    assert 'aria-label="Difference from learned in every cell"' in interaction_plot(results)
    rows = csv.DictReader(csv_effects(results).splitlines())
    assert [row["verdict"] for row in rows] == [one.difference.verdict for one in results.effects]
    assert len(json.loads(json.dumps(as_json(results)))["effects"]) == 8


def test_an_unstable_baseline_spoils_its_cell_alone(tiny: Path, tmp_path: Path) -> None:
    finish(tiny, tmp_path / "out", diverged="learned depth=1")
    results = read_results(tmp_path / "out")
    verdicts = {one.name: one.difference.verdict for one in results.effects if one.variant == "rotary"}
    assert verdicts == {
        "depth=1": "unstable", "depth=2": "better",
        "mean of 2 cells": "unstable", "depth=2 against 1": "unstable",
    }  # fmt: skip


@pytest.mark.parametrize(("variants", "seeds", "tied"), [(1, 3, 0.0), (5, 4, 0.6)])
def test_the_error_over_all_questions_is_the_level(variants: int, seeds: int, tied: float) -> None:
    """Seeds may share their noise over cells, and the noise of a cell may be larger."""
    studies = 2000
    generator = np.random.default_rng((variants, seeds))
    shape = (studies, 2, variants + 1, seeds)
    runs = tied**0.5 * generator.normal(size=(studies, 1, variants + 1, seeds))
    runs = runs + (1 - tied) ** 0.5 * generator.normal(size=shape) * np.array([1.0, 1.7])[:, None, None]
    asked = contrasts({"depth": [1, 2]})
    wrong = np.zeros(studies, bool)
    for one in asked:
        found = judge(np.einsum("c,sckn->skn", one.weights, runs), level=LEVEL / len(asked))
        wrong |= (found.better | found.worse).any(-1)
    assert wrong.mean() < 0.055 + 3 * (0.05 * 0.95 / studies) ** 0.5

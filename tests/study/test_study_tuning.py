"""Results of tuning: the best by validation, its edge, its budget, its figure; and every form of the
report."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from flagformer.lab.study.directory import write_setting, write_study
from flagformer.lab.study.file import Run, Study, load_study
from flagformer.lab.study.run import write_report

Command = Callable[..., Result]
BEST = {"plain": 0.02, "rotary": 0.03}


@pytest.fixture
def study(tiny: Path) -> Study:
    compare = "compare={plain: {}, rotary: {rotary_pos_emb: true, use_abs_pos_emb: false}}"
    return load_study(tiny, [compare, "tune.lr=[0.01, 0.02, 0.03]", "seeds=3", "audit=true"])[0]


def finish(out: Path, run: Run, status: str = "finished") -> None:
    """The best learning rate is `BEST` by validation; on the test split another one happens to be lower."""
    place = out / "trials" / run.trial.id
    place.mkdir(parents=True)
    off = abs(run.trial.train.lr - BEST[run.variant])
    nats = 1.5 - off + 0.01 * run.seed + (0.1 if run.variant == "rotary" else 0.0) * (1 + 0.01 * run.seed)
    entries = [
        {
            "split": "test",
            "seq_len": n,
            "nats": nats,
            "bits_per_byte": None,
            "accuracy": 0.5,
            "by_position": [nats + 0.1, nats],
        }
        for n in (16, 32)
    ]
    result = {
        "status": status, "steps": 200, "evaluation": entries if status == "finished" else [], "notes": [],
        "validation_nats": 1.4 + off, "machine": {"torch": "2", "threads": 1},
        "cost": {"tokens_per_second": 1000.0, "peak_memory_bytes": 3 << 28},
    }  # fmt: skip
    (place / "result.json").write_text(json.dumps(result))
    (place / "log.jsonl").write_text("".join(f'{{"step": {s}, "loss": {2 / s}}}\n' for s in range(1, 201)))


def begin(out: Path, study: Study) -> None:
    out.mkdir()
    write_study(out, study)
    write_setting(out, {"data": "f00d", "variants": {name: {"params": 1000} for name in study.compare}})


def test_the_best_by_validation_is_compared(study: Study, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    begin(out, study)
    for run in study.runs:
        finish(out, run)
    results = write_report(out)
    plain, rotary = results.rows
    assert (plain.tuned, rotary.tuned) == ({"train.lr": 0.02}, {"train.lr": 0.03})
    assert (plain.at_edge, rotary.at_edge) == ((), ("train.lr",))
    assert (plain.runs, rotary.runs) == (9, 9)
    assert plain.loss.values == (1.5, 1.51, 1.52)
    assert [candidate.validation.n for candidate in plain.candidates] == [3, 3, 3]
    assert rotary.difference.verdict == "worse"
    said = command("report", out).stdout
    assert "Best by validation loss: plain lr 0.02 and rotary lr 0.03." in said
    assert "The best setting of rotary is at the edge of the grid" in said
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 6
    assert "edge of the grid" in page
    assert "Every variant had 3 candidates with 3 seeds each, 9 runs in total." in re.sub(r"\s+", " ", page)


def test_a_candidate_that_diverged_is_not_chosen(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, study)
    for run in study.runs:
        bad = run.variant == "plain" and run.trial.train.lr == 0.02 and run.seed == 1
        finish(out, run, "diverged" if bad else "finished")
    assert write_report(out).row("plain").tuned["train.lr"] != 0.02


def test_every_form_of_the_report_agrees(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, study)
    for run in study.runs:
        finish(out, run)
    results = write_report(out)
    [plain, rotary] = csv.DictReader(io.StringIO((out / "table.csv").read_text()))
    assert float(rotary["difference"]) == results.row("rotary").difference.estimate.mean
    assert (plain["verdict"], rotary["verdict"], rotary["at_edge"]) == ("baseline", "worse", "True")
    assert rotary["flags"] == "rotary_pos_emb=True, use_abs_pos_emb=False"
    tex = (out / "table.tex").read_text()
    assert tex.count(r"\\") == 3
    assert (
        len({re.sub(r"\\&", "", line).count("&") for line in tex.splitlines() if line.endswith(r"\\")}) == 1
    )
    assert not re.search(r"[^\\]_", tex)
    table = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("| ")]
    assert table[1].startswith("| plain |")
    assert " worse |" in table[2]


def test_watch_shows_the_progress(study: Study, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    begin(out, study)
    finish(out, study.runs[0])
    place = out / "trials" / study.runs[1].trial.id
    place.mkdir()
    (place / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 2.0}\n')
    before = sorted(path.name for path in out.iterdir())
    result = command("watch", out)
    assert result.exit_code == 0, result.stderr
    assert "tiny: 18 trials, 1 finished, 1 unfinished, 16 waiting" in result.stdout
    assert "step 2 of 200" in result.stdout
    assert "plain, seed 0, lr 0.02" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == before
    assert command("watch", tmp_path / "nowhere").exit_code == 2

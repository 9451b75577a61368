"""Trials that fail, directories in use, studies that grow."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console
from tiny_study import dies, dies_once, ends_in_every_way, fails, fills_the_disk, finished, table

from flagformer.lab.study import failures
from flagformer.lab.study.results import Results
from flagformer.lab.study.run import prepare, run_study
from flagformer.lab.study.table import legend
from flagformer.lab.train.files import only_process

Command = Callable[..., Result]


def run(file: Path, out: Path, *overrides: str, function: Any = None) -> tuple[Results, str]:
    """Run with short trials; return the results and the output."""
    said = io.StringIO()
    prepared = prepare(file, ["train.steps=12", "train.checkpoint_every=5", *overrides])
    return run_study(prepared, out, Console(file=said, width=200), function), said.getvalue()


def test_a_crash_and_a_kill_do_not_affect_others_and_are_retried(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results, said = run(tiny, out, function=fails)
    assert results.count("finished") == 3
    assert "rotary, seed 1: failed: RuntimeError: the roof is on fire" in said
    [failed] = [trial for trial in results.trials if trial.state == "failed"]
    assert (failed.run.variant, failed.run.seed) == ("rotary", 1)
    assert "the roof is on fire" in (out / "report.html").read_text()
    assert "Traceback" in (out / "trials" / failed.run.trial.id / "output.txt").read_text()
    kept = finished(out)
    results, said = run(tiny, out, function=dies)  # seed 0 of rotary is finished and not restarted
    assert results.count("finished") == 4
    assert "3 finished before, 1 to run" in said
    assert finished(out).items() >= kept.items()


def test_a_killed_trial_is_named_with_its_signal(tiny: Path, tmp_path: Path) -> None:
    results, said = run(tiny, tmp_path / "out", function=dies)
    assert results.count("finished") == 3
    assert "rotary, seed 0: failed: the process was killed by SIGKILL" in said


def test_every_end_is_recorded_by_name_and_the_study_continues(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results, said = run(tiny, out, "concurrency=1", function=ends_in_every_way)
    assert {trial.run.label: trial.state for trial in results.trials} == {
        "learned, seed 0": "finished",
        "rotary, seed 0": "failed",
        "learned, seed 1": "diverged",
        "rotary, seed 1": "failed",
    }
    kinds = [json.loads(path.read_text())["kind"] for path in out.glob("trials/*/failure.json")]
    assert sorted(kinds) == ["error", "memory"]
    assert "rotary, seed 0: failed: out of memory when allocating 144115188075855872 bytes" in said
    assert "learned, seed 1: diverged at step 1: the loss is not finite" in said
    words = legend(results)
    assert "failed (2): rotary, seed 0 and rotary, seed 1" in words
    assert "diverged (1): learned, seed 1" in words
    assert results.row("learned").loss.n == 1


def test_lost_processes_are_restarted_up_to_the_limit(tiny: Path, tmp_path: Path) -> None:
    run(tiny, tmp_path / "undisturbed")
    results, said = run(tiny, tmp_path / "out", "retries=1", function=dies_once)
    assert results.count("finished") == 4
    assert said.count("the process was killed by SIGKILL; attempt 2 follows") == 4
    assert table(tmp_path / "out")["rows"] == table(tmp_path / "undisturbed")["rows"]


def test_lost_candidates_are_restarted(tiny: Path, tmp_path: Path) -> None:
    design = ("audit=true", "tune.lr=[1e-3, 1e-2]", "seeds=1")
    run(tiny, tmp_path / "undisturbed", *design)
    results, said = run(tiny, tmp_path / "out", *design, "retries=1", function=dies_once)
    assert results.count("finished") == 4
    assert said.count("attempt 2 follows") == 4
    assert said.count("learned, seed 0, lr 0.001: the process was killed") == 1
    assert table(tmp_path / "out")["rows"] == table(tmp_path / "undisturbed")["rows"]
    assert all(row.tuned and row.stamp.found for row in results.rows)


def test_a_kill_for_lack_of_memory_is_distinguished_from_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(failures, "COUNTERS", tmp_path / "vmstat")
    assert failures.count_oom_kills() == 0, "a system without a counter"
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 3\n")
    assert failures.killed(-9, oom_kills=3).kind == "killed"
    assert failures.killed(-9, oom_kills=2).kind == "memory"
    assert failures.killed(-15, oom_kills=2).message == "the process was killed by SIGTERM"


def test_a_full_disk_stops_the_study_and_keeps_finished_trials(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match=r"disk is full.*free some space and run the same command again"):
        run(tiny, out, function=fills_the_disk)
    kept = finished(out)
    assert len(kept) >= 1
    results, _ = run(tiny, out)
    assert results.count("finished") == 4
    assert finished(out).items() >= kept.items()


def test_another_study_is_refused_and_files_stay_unchanged(
    tiny: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    run(tiny, out, "compare={learned: {}}", "seeds=1")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = command("run", tiny, "name=other", "--out", out)
    assert result.exit_code == 2
    assert (
        f"{out} contains the study `tiny`, not `other`; choose another directory with --out" in result.stderr
    )
    result = command("run", tiny, "train.steps=13", "base.dim=32", "--out", out)
    assert result.exit_code == 2
    assert "`train.steps`: 12 in the directory, 13 in this study" in result.stderr
    assert "`base.dim`: 16 in the directory, 32 in this study" in result.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda out: (out.mkdir(), (out / "thesis.txt").write_text("x")),
            "is not empty and contains no study (thesis.txt)",
        ),
        (lambda out: out.write_text("x"), "is a file"),
        (
            lambda out: (out.mkdir(), (out / "study.yaml").write_text("name: [")),
            "study.yaml:1: is not valid YAML",
        ),
        (lambda out: (out.mkdir(), (out / "study.yaml").write_bytes(b"\xff")), "is not UTF-8"),
    ],
    ids=["not empty", "a file", "damaged study", "binary study"],
)
def test_directories_of_other_programs_are_refused(
    make: Callable[[Path], object], words: str, tiny: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    make(out)
    result = command("run", tiny, "--out", out)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_two_studies_in_one_directory_are_refused(tiny: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with only_process(out):
        result = command("run", tiny, "--out", out)
    assert result.exit_code == 2
    assert f"{out} is in use by another process" in result.stderr


def test_a_grown_study_keeps_the_trials_it_shares(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(tiny, out, "seeds=1")
    kept = finished(out)
    results, said = run(tiny, out, "seeds=2", "compare.alibi={alibi_pos_bias: true, use_abs_pos_emb: false}")
    assert "6 trials, 2 finished before, 4 to run" in said
    assert results.count("finished") == 6
    assert finished(out).items() >= kept.items()


def test_other_data_under_the_same_name_is_refused(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(range(1, 128)) * 80)
    overrides = [f"data={{source: file, path: {text}, seq_len: 16}}", "seeds=1", "compare={learned: {}}"]
    run(tiny, tmp_path / "out", *overrides)
    text.write_bytes(bytes(range(127, 0, -1)) * 80)
    with pytest.raises(ValueError, match="was begun with other data"):
        run(tiny, tmp_path / "out", *overrides)


def test_a_damaged_result_is_named(tiny: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    results, _ = run(tiny, out, "seeds=1", "compare={learned: {}}")
    path = out / "trials" / results.trials[0].run.trial.id / "result.json"
    path.write_text('{"status": ')
    result = command("report", out)
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr


def test_results_do_not_depend_on_concurrent_trials(tiny: Path, tmp_path: Path) -> None:
    run(tiny, tmp_path / "one", "concurrency=1")
    run(tiny, tmp_path / "two", "concurrency=2")
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert one["rows"] == two["rows"]
    assert one["rows"][1]["difference"]["estimate"]["n"] == 2
    json.dumps(one, allow_nan=False)

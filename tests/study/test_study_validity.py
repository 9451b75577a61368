"""Audit summaries: failed audits are shown in every table, and an invalid win is never called better."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from tiny_study import examine_leaking, leaks

from flagformer.lab.study.audits import STAMPS, audit_results
from flagformer.lab.study.run import prepare, run_study, write_report

Command = Callable[..., Result]
LEAK = "compare={plain: {}, leaky: {attn_softclamp_logits: true}}"


def test_a_planted_leak_is_marked_and_never_better(tiny: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    prepared = prepare(tiny, [LEAK, "audit=true", "seeds=3", "evaluate.seq_lens=[16]", "train.steps=60"])
    run_study(prepared, out, Console(file=io.StringIO()), leaks, examine_leaking)
    results = write_report(out)
    leaky = results.row("leaky")
    assert leaky.stamp.found["causal"] == "failed"
    assert results.row("plain").stamp.found == dict.fromkeys(STAMPS, "passed")
    assert leaky.difference is not None
    assert leaky.difference.estimate.high is not None
    assert leaky.difference.estimate.high < 0  # otherwise it would be called better
    assert leaky.loss.mean < 0.8 * results.row("plain").loss.mean
    assert leaky.difference.verdict == "invalid"
    assert {difference.verdict for difference in leaky.quality_difference.values()} == {"invalid"}
    said = command("report", out).stdout
    assert "INVALID" in said
    assert "leaky failed the audit (future leak:" in said
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    for whole in (page, text):
        assert "INVALID: not causal" in whole
        assert "Lowest held-out loss at 16 tokens: plain" in whole
    assert "INVALID" in (out / "table.tex").read_text()


def test_a_leaking_baseline_is_no_reference(tiny: Path, tmp_path: Path) -> None:
    leak = "compare={leaky: {attn_softclamp_logits: true}, plain: {}}"
    prepared = prepare(tiny, [leak, "audit=true", "evaluate.seq_lens=[16]", "train.steps=60"])
    run_study(prepared, tmp_path / "out", Console(file=io.StringIO()), leaks, examine_leaking)
    assert write_report(tmp_path / "out").row("plain").difference.verdict == "invalid"


def test_a_variant_is_audited_once(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    overrides = ["audit=true", "train.steps=5", "seeds=1"]
    run_study(prepare(tiny, overrides), out, Console(file=io.StringIO()))
    before = {path: path.stat().st_mtime_ns for path in out.glob("variants/*/examined.json")}
    assert len(before) == 2
    run_study(prepare(tiny, [*overrides, "seeds=2"]), out, Console(file=io.StringIO()))
    assert {path: path.stat().st_mtime_ns for path in out.glob("variants/*/examined.json")} == before
    found = json.loads(next(iter(before)).read_text())
    assert found["decode_tokens_per_second"] > 0
    assert found["failures"] == []


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ({}, 2 * 2 * 64 * 4),  # keys and values of two heads of 64, fp32
        ({"attn_dim_head": 8}, 2 * 2 * 8 * 4),
        ({"attn_dim_head": 8, "attn_one_kv_head": True}, 2 * 8 * 4),
    ],
)
def test_the_decode_state_has_the_size_of_its_keys_and_values(tiny: Path, flags: dict, size: int) -> None:
    import flagformer

    trial = prepare(tiny, ["compare={plain: {}}"]).study.runs[0].trial
    trial = trial.model_copy(update={"flags": {**trial.flags, **flags}})
    assert audit_results(flagformer.build(trial.model_flags), trial)["state_bytes_per_token"] == size

"""Two ranks train each kind of model with each objective: losses and weights of one process, bit-equal
resuming. `make test` has some cases of each, `make matrix` all, in one pair of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from objective_ranks import Job, run_jobs, still
from objective_runs import CASES
from safetensors.torch import load_file

from flagformer.lab.train.trial import run_trial
from forked import run_ranks

CLOSE = 1e-5  # fp32 sums in another order, through four steps of AdamW
EVERY = [(kind, name, parallel) for kind, name in CASES for parallel in ("ddp", "fsdp")]
SOME = [
    ("memformer", "sequence_to_sequence", "ddp"),
    ("routing_lm", "masked_lm", "fsdp"),
]
Case = tuple[str, str, str]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = EVERY if metafunc.config.getoption("matrix") else SOME
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases, ids=["-".join(case) for case in cases])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A complete run of each case, and one that was stopped in step 3 and resumed."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs: list[Job] = []
    for case in EVERY if pytestconfig.getoption("matrix") else SOME:
        whole, stopped = (folder / f"{'-'.join(case)}-{end}" for end in ("whole", "stopped"))
        jobs += [(*case, whole, None), (*case, stopped, 4), (*case, stopped, None)]
    run_ranks(run_jobs, folder, jobs, timeout=1200.0)
    return folder


def log_of(directory: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [(line["loss"], line.get("validation_loss", 0.0)) for line in lines]


def result_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return found


@pytest.mark.slow
def test_two_ranks_equal_one_process(ranks: Path, case: Case, tmp_path: Path) -> None:
    alone, together = run_trial(still(*case[:2]), tmp_path), ranks / f"{'-'.join(case)}-whole"
    result = result_of(together)
    assert result["machine"]["ranks"] == 2
    for mine, theirs in zip(log_of(together), log_of(tmp_path), strict=True):
        assert mine == pytest.approx(theirs, abs=CLOSE)
    [mine], [theirs] = result["evaluation"], alone["evaluation"]
    assert mine["nats"] == pytest.approx(theirs["nats"], abs=CLOSE)
    assert mine["tokens"] == theirs["tokens"]
    assert mine.get("exact_match") == theirs.get("exact_match")
    assert result["validation_nats"] == pytest.approx(alone["validation_nats"], abs=CLOSE)
    weights, expected = (load_file(place / "model" / "model.safetensors") for place in (together, tmp_path))
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        assert (weight - expected[key]).abs().max() < CLOSE, key


@pytest.mark.slow
def test_two_ranks_resume_bit_equal(ranks: Path, case: Case) -> None:
    whole, stopped = (ranks / f"{'-'.join(case)}-{end}" for end in ("whole", "stopped"))
    assert log_of(stopped) == log_of(whole)
    assert result_of(stopped)["evaluation"] == result_of(whole)["evaluation"]
    files = [
        {path.name: path.read_bytes() for path in (place / "model").iterdir()} for place in (stopped, whole)
    ]
    assert files[0] == files[1]

"""`flagformer eval RUN`: the figures of saved models of every kind, against loops written apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_runs import CASES, ONE, TRAIN, directory_of, nats, trained
from typer.testing import CliRunner

import flagformer
from flagformer.lab.cli.main import app
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial

IDS = ["-".join(case) for case in CASES]
TIGHT = 2e-6


def said(*words: object) -> str:
    found = CliRunner().invoke(app, ["eval", *map(str, words)])
    return f"{found.exit_code} {' '.join(found.output.split())}"


def entry_of(tmp_path: Path, *words: object) -> dict[str, Any]:
    text = said(*words, "--out", tmp_path / "found.json")
    assert text.startswith("0 "), text
    [entry] = json.loads((tmp_path / "found.json").read_text())["evaluation"]
    return dict(entry)


@pytest.mark.parametrize(("kind", "name"), CASES, ids=IDS)
def test_a_saved_model_has_the_figures_of_its_training(kind: str, name: str, tmp_path: Path) -> None:
    _, result, _ = trained(kind, name)
    assert entry_of(tmp_path, directory_of(kind, name)) == result["evaluation"][0]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of bytes of a text with characters of one to four bytes."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("aé€😀 words and words, " * 40, encoding="utf-8")
    content = {
        "flags": {"model": "decoder", **ONE},
        "data": {"source": "file", "path": str(folder / "text.txt"), "seq_len": 12},
        "train": {**TRAIN, "steps": 2},
        "evaluate": {"batches": 1},
    }
    run_trial(Trial.model_validate(content), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("stride", [1, 5, 12])
def test_the_perplexity_of_a_text_scores_each_token_once(text_run: Path, stride: int, tmp_path: Path) -> None:
    entry = entry_of(tmp_path, text_run, "--stride", stride, "--split", "validation")
    trial = Trial.model_validate(
        {key: one for key, one in json.loads((text_run / "trial.json").read_text()).items() if key != "id"}
    )
    text = bytes(trial.source.content("validation").tolist())
    model, losses, begin = flagformer.load(text_run / "model").eval(), [], 0
    for place in range(1, len(text)):  # the token at `place`, from a window that holds it
        while begin + 12 < place:
            begin = min(begin + stride, len(text) - 13)
        with torch.no_grad():
            logits = model(torch.tensor([list(text[begin:place])]))[0, -1]
        losses.append(nats(logits, text[place]))
    mean, bits = sum(losses) / len(losses), sum(losses) / math.log(2)
    assert entry["tokens"] == len(losses)
    assert entry["nats"] == pytest.approx(mean, abs=TIGHT)
    assert entry["perplexity"] == pytest.approx(math.exp(mean), rel=TIGHT)
    assert entry["bits_per_byte"] == pytest.approx(bits / len(losses), abs=TIGHT)
    letters = len(text[1:].decode(errors="ignore").encode("utf-32-le")) // 4
    assert entry["bits_per_character"] == pytest.approx(bits / letters, rel=TIGHT)


def test_pseudo_perplexity_masks_each_token_alone(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, directory_of("encoder", "masked_lm"), "--each-token", "--batches", 1)
    trial, _, model = trained("encoder", "masked_lm")
    rows, losses = trial.source.batch("test", 0, 0, 4, 24)[0].tolist(), []
    for row in rows:
        for place, token in enumerate(row):
            masked = [*row[:place], 256, *row[place + 1 :]]
            with torch.no_grad():
                losses.append(nats(model(torch.tensor([masked]))[0, place], token))
    assert entry["tokens"] == len(losses) == 96
    assert entry["nats"] == pytest.approx(sum(losses) / 96, abs=TIGHT)
    assert entry["pseudo_perplexity"] == pytest.approx(math.exp(sum(losses) / 96), rel=TIGHT)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--stride", 13], "`stride` must be from 1 to the length of a window, 12, but is 13"),
        (
            ["--each-token"],
            "needs `objective: masked_lm` or `masked_diffusion`, but the run has `next_token`",
        ),
        (["--split", "dev"], "`--split` must be one of train, validation, test, but is 'dev'"),
        (["--limit", 3], "`--limit` needs `--tasks`"),
        (["--stride", 3, "--each-token"], "must not both be given"),
        (["--stride", 3, "--tasks", "sums"], "`--stride` must be left out with `--tasks`"),
    ],
)
def test_options_that_do_not_fit_are_refused(text_run: Path, words: list[Any], text: str) -> None:
    assert text in said(text_run, *words)


def test_a_model_without_settings_of_training_is_refused(text_run: Path) -> None:
    assert "has no `trial.json`; give the directory of a training" in said(text_run / "model")

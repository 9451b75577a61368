"""`flagformer generate` of each kind of model: targets, masked tokens, classes, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from objective_runs import trained, trial_of
from typer.testing import CliRunner

import flagformer
from flagformer.lab.cli.answers import answer, filled, read_ids, target, written
from flagformer.lab.cli.main import app

GREEDY = {"temperature": 0.0}


def test_the_target_of_a_task_is_generated() -> None:
    model = trained("xtransformer", "sequence_to_sequence")[2]
    source = torch.tensor([[3, 1, 2]])
    new = model.generate(source, torch.tensor([[9]]), 4, temperature=0.0)[0].tolist()
    assert target(model, "3 1 2", 4, GREEDY) == " ".join(map(str, new))
    assert len(answer(model, "3 1 2", None, GREEDY).split()) == 8


@pytest.mark.parametrize("kind", ["memformer", "routing_encdec"])
def test_other_pairs_generate(kind: str) -> None:
    model = trained(kind, "sequence_to_sequence")[2]
    assert len(answer(model, "1 2 3", 3, GREEDY).split()) == 3


def test_targets_of_text_show_sentinels() -> None:
    model = trained("xtransformer", "span_corruption")[2]
    assert isinstance(answer(model, "some text", 5, GREEDY), str)
    assert written([257, 104, 105, 258, 256], 260) == "<1>hi<2>"


def test_masked_bytes_are_filled() -> None:
    model = trained("encoder", "masked_lm")[2]
    ids = [*b"ab", 256, *b"d"]
    with torch.no_grad():
        best = int(model(torch.tensor([ids]))[0, 2, :256].argmax())
    assert filled(model, "ab[MASK]d") == bytes([*b"ab", best, *b"d"]).decode(errors="replace")
    task = trained("routing_lm", "masked_lm")[2]
    assert len(answer(task, "1 [MASK] 3", None, GREEDY).split()) == 3
    with pytest.raises(ValueError, match=r"must hold \[MASK\]"):
        answer(model, "abc", None, GREEDY)


def test_classes_have_probabilities() -> None:
    model = trained("classifier", "sequence_classification")[2]
    lines = answer(model, "0 1 1", None, GREEDY).splitlines()
    assert [line.split(":")[0] for line in lines] == ["class 0", "class 1"]
    assert sum(float(line.split()[-1]) for line in lines) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("prompt", "text"), [("1 x", "holds 'x'"), ("", "is empty"), ("1 9", "holds '9'"), ("-1", "holds '-1'")]
)
def test_prompts_that_are_no_ids_are_refused(prompt: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_ids(prompt, 9)


@pytest.mark.parametrize(("kind", "name"), [("continuous", "regression"), ("vit", "image_classification")])
def test_models_without_tokens_are_refused(kind: str, name: str) -> None:
    if kind == "vit":
        pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="so it generates no text"):
        answer(trained(kind, name)[2], "a", None, GREEDY)


def test_the_command(tmp_path: Path) -> None:
    flagformer.build(trial_of("xtransformer", "sequence_to_sequence").model_flags).save(tmp_path / "model")
    result = CliRunner().invoke(
        app, ["generate", str(tmp_path), "--prompt", "1 2", "--length", "3", "--temperature", "0"]
    )
    assert result.exit_code == 0, result.output
    assert len(result.stdout.split()) == 3
    wrong = CliRunner().invoke(app, ["generate", str(tmp_path), "--prompt", "words"])
    assert wrong.exit_code == 2
    assert "must be ids of the task's tokens" in " ".join(wrong.stderr.split())

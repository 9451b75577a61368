"""Whole trials: learning, ends, and the files they write."""

import json
import math

import pytest
import torch
from tiny_trial import losses, tiny

from flagformer.lab.train.trial import run_trial

STRICT = {"parse_constant": lambda word: pytest.fail(f"{word} is no JSON")}


def test_a_pattern_is_learned(tmp_path):
    """Bytes that repeat with period 5: a trained model must predict nearly all, at the training length and
    beyond.
    """
    text = tmp_path / "text"
    text.write_bytes(b"abcde" * 1000)
    trial = tiny(
        flags={"dim": 32, "attn_dropout": 0.0, "ff_dropout": 0.0},
        data={"source": "file", "path": str(text), "seq_len": 16},
        train={
            "steps": 60,
            "batch_size": 8,
            "lr": 1e-2,
            "warmup": 5,
            "eval_every": 0,
            "checkpoint_every": 60,
        },
        evaluate={"seq_lens": [16], "batches": 2},
    )
    result = run_trial(trial, tmp_path / "run")
    (entry,) = result["evaluation"]
    assert result["status"] == "finished"
    assert losses(tmp_path / "run")[0][1] > 3, (
        "an untrained model is uniform over 256 bytes: near ln 256 = 5.5 nats"
    )
    assert entry["nats"] < 0.1
    assert entry["accuracy"] > 0.99
    assert entry["bits_per_byte"] == pytest.approx(entry["nats"] / math.log(2))
    assert entry["tokens"] == 2 * 8 * 16
    assert result["tokens"] == 60 * 8 * 16


def test_a_task_reports_accuracy_with_its_chance_level(tmp_path):
    result = run_trial(tiny(), tmp_path)
    assert [entry["seq_len"] for entry in result["evaluation"]] == [12, 24]
    for entry in result["evaluation"]:
        assert entry["chance"] == 1 / 8
        assert entry["bits_per_byte"] is None
        assert 0 <= entry["accuracy"] <= 1
    # 4 rows of 12 tokens, 6 of them scored; at 24 tokens half as many rows, 12 of each scored
    assert [entry["tokens"] for entry in result["evaluation"]] == [2 * 4 * 6, 2 * 2 * 12]
    assert "chance: 1 / symbols" in result["metric"]


def test_the_result_equals_the_file(tmp_path):
    result = run_trial(tiny(), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text(), **STRICT) == result
    assert result["train_loss"] == losses(tmp_path)[-1][1]
    assert result["steps"] == 8
    assert result["cost"]["tokens_per_second"] > 0


def test_a_trial_that_diverges_stops_with_an_error(tmp_path):
    trial = tiny(train={"lr": 1e3, "weight_decay": 10, "warmup": 0, "clip": 0, "eval_every": 0})
    result = run_trial(trial, tmp_path)
    assert result["status"] == "diverged"
    assert result["steps"] < 8
    assert result["evaluation"] == []
    assert not (tmp_path / "model").exists()
    lines = [json.loads(line, **STRICT) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] is None
    assert len(lines) == result["steps"]
    assert run_trial(trial, tmp_path) == result


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"matmul_precision": "medium"}])
def test_lower_precision_trains_close_to_full(tmp_path, change):
    before = torch.get_float32_matmul_precision()
    run_trial(tiny(), tmp_path / "full")
    run_trial(tiny(train=change), tmp_path / "low")
    assert torch.get_float32_matmul_precision() == before
    full, low = (torch.tensor([line[1] for line in losses(tmp_path / name)]) for name in ("full", "low"))
    # bf16 has 8 bits: products are off by 0.4 % at most, the loss of this model by less
    torch.testing.assert_close(low, full, rtol=0.02, atol=0.02)
    if "precision" in change:
        assert not torch.equal(low, full), "bf16 must have been used"


def test_validation_restores_the_training_mode(tmp_path):
    """With dropout, a model left in eval mode after a validation would train differently; see also the resume
    tests.
    """
    run_trial(tiny(train={"eval_every": 1}), tmp_path / "one")
    run_trial(tiny(train={"eval_every": 0}), tmp_path / "two")
    assert [line[:2] for line in losses(tmp_path / "one")] == [line[:2] for line in losses(tmp_path / "two")]


def test_a_missing_device_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        run_trial(tiny(train={"device": "cuda"}), tmp_path)

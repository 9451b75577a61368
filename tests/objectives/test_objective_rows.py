"""Next token, prefix LM, sequence classification, image classification and regression, by loops."""

from __future__ import annotations

import math

import pytest
import torch
from objective_runs import held_out, mean_nats, nats, trained
from pydantic import TypeAdapter

from flagformer.lab.data import IGNORE
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.objectives.prefix_lm import PrefixLM
from flagformer.lab.objectives.regression import Regression

READER = TypeAdapter(DataConfig)


@pytest.mark.parametrize("kind", ["decoder", "routing_lm"])
def test_next_token(kind: str) -> None:
    trial, result, model = trained(kind, "next_token")
    found = []
    for ids, targets in held_out(trial):
        with torch.no_grad():
            logits = model(ids)
        found.append((logits if kind == "decoder" else logits[0], targets))
    loss, accuracy, _ = mean_nats(found)
    [entry] = result["evaluation"]
    assert entry["nats"] == pytest.approx(loss, abs=2e-6)
    assert entry["accuracy"] == accuracy


def test_prefix_lm_attends_to_the_whole_prefix_and_scores_the_rest() -> None:
    """Each row alone, with an explicit mask: allowed are earlier positions and all of the prefix."""
    trial, result, model = trained("prefix_decoder", "prefix_lm")
    found = []
    for step, (ids, prefix, targets) in enumerate(held_out(trial)):
        following = trial.source.batch("test", step, 0, 4, 24)[1]
        for row, length in enumerate(prefix.tolist()):
            with torch.no_grad():
                logits = model(ids[row : row + 1], prefix_attn_len=length)
                changed = ids[row : row + 1].clone()
                changed[0, length - 1] = (changed[0, length - 1] + 1) % 256
                moved = (model(changed, prefix_attn_len=length) - logits).abs().amax(-1)[0]
            assert length == 1 or moved[0] > 1e-6, "the first token attends to the last of the prefix"
            wanted = [IGNORE] * (length - 1) + following[row, length - 1 :].tolist()
            assert targets[row].tolist() == wanted
            found.append((logits, targets[row : row + 1]))
    loss, accuracy, _ = mean_nats(found)
    [entry] = result["evaluation"]
    assert entry["nats"] == pytest.approx(loss, abs=2e-6)
    assert entry["accuracy"] == accuracy


def test_the_prefix_of_a_task_ends_where_its_answer_begins() -> None:
    data = READER.validate_python({"source": "copy", "symbols": 5})
    ids, prefix, targets = PrefixLM().batch(data, "train", 1, 0, 4, 12)
    assert prefix.tolist() == [7] * 4  # six symbols and the separator
    assert torch.equal(targets, data.batch("train", 1, 0, 4, 12)[1])
    assert ids[:, 6].tolist() == [5] * 4


@pytest.mark.parametrize("name", ["parity", "list_ops"])
def test_classes_of_rows_and_disjoint_splits(name: str) -> None:
    data = READER.validate_python({"source": name})
    seen = {}
    for split in ("train", "test"):
        batches = [data.classified(split, step, 0, 32, 16) for step in range(4 if name == "list_ops" else 32)]
        rows, classes = (torch.cat(parts) for parts in zip(*batches))
        assert classes.max() < data.num_classes
        if name == "parity":
            assert torch.equal(rows.sum(1) % 2, classes[:, 0])
        seen[split] = set(map(tuple, rows.tolist()))
    assert not seen["train"] & seen["test"]
    with pytest.raises(TypeError, match="have no class"):
        READER.validate_python({"source": "copy"}).classified("train", 0, 0, 1, 8)


def test_sequence_classification() -> None:
    trial, result, model = trained("classifier", "sequence_classification")
    losses, right = [], 0
    for ids, classes in held_out(trial):
        with torch.no_grad():
            logits = model(ids)
        for row, target in enumerate(classes[:, 0].tolist()):
            assert target == int(ids[row].sum()) % 2
            losses.append(nats(logits[row], target))
            right += int(logits[row].argmax()) == target
    [entry] = result["evaluation"]
    assert entry["nats"] == pytest.approx(sum(losses) / 8, abs=2e-6)
    assert (entry["accuracy"], entry["chance"]) == (right / 8, 0.5)


def test_image_classification() -> None:
    pytest.importorskip("sklearn")
    trial, result, model = trained("vit", "image_classification")
    found = []
    for images, classes in held_out(trial):
        with torch.no_grad():
            found.append((model(images)[:, None], classes))
    loss, accuracy, _ = mean_nats(found)
    [entry] = result["evaluation"]
    assert entry["nats"] == pytest.approx(loss, abs=2e-6)
    assert entry["accuracy"] == accuracy


def test_regression() -> None:
    trial, result, model = trained("continuous", "regression")
    errors, squares = [], []
    for inputs, targets in held_out(trial):
        with torch.no_grad():
            outputs = model(inputs)
        for row in range(4):
            for place in range(12):
                pairs = zip(outputs[row, place].tolist(), targets[row, place].tolist())
                errors += [(one - other) ** 2 for one, other in pairs]
                squares += [value**2 for value in targets[row, place].tolist()]
    [entry] = result["evaluation"]
    assert entry["nats"] == pytest.approx(sum(errors) / len(errors), abs=2e-6)
    assert entry["accuracy"] == pytest.approx(1 - sum(errors) / sum(squares), abs=2e-6)
    zeros = torch.zeros(1, 2, 2)
    assert Regression().score(zeros, torch.ones(1, 2, 2)) == (0.0, 4.0)


@pytest.mark.parametrize("predict", ["next", "clean"])
def test_sines_are_waves_of_variance_1(predict: str) -> None:
    data = READER.validate_python({"source": "sines", "noise": 0.0, "predict": predict})
    inputs, targets = data.batch("train", 0, 0, 256, 50)
    if predict == "next":
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
    else:
        assert torch.equal(inputs, targets)
    assert targets.square().mean().item() == pytest.approx(1.0, abs=0.05)
    # a sine of frequency f: x[t + 1] + x[t - 1] = 2 cos(2 pi f) x[t]
    one = READER.validate_python({"source": "sines", "noise": 0.0, "waves": 1, "channels": 1})
    wave = one.batch("train", 0, 0, 1, 50)[0][0, :, 0].double()
    ratios = (wave[2:] + wave[:-2]) / (2 * wave[1:-1])
    frequency = math.acos(float(ratios.median())) / (2 * math.pi)
    assert 0.02 <= frequency <= 0.2
    torch.testing.assert_close(wave[2:] + wave[:-2], 2 * ratios.median() * wave[1:-1], rtol=1e-3, atol=1e-4)


def test_the_unit_of_the_loss_of_regression() -> None:
    [entry] = trained("continuous", "regression")[1]["evaluation"]
    assert entry["unit"] == "squared error"
    [other] = trained("decoder", "next_token")[1]["evaluation"]
    assert "unit" not in other

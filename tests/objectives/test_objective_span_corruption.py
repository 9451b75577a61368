"""Span corruption, by the definition of the paper: inputs and targets of each row by a loop."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from objective_runs import held_out, mean_nats, trained

from flagformer.lab.data.stdlib import StandardLibrary
from flagformer.lab.objectives.span_corruption import SpanCorruption, corrupted, random_lengths

TEXT = StandardLibrary(mib=1.0)
START = 256


def rebuilt(inputs: list[int], target: list[int]) -> tuple[list[int], list[int]]:
    """The row, and the lengths of its spans: each sentinel of the input is replaced by its span."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token > START:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    row = [one for token in inputs for one in (spans[token] if token > START else [token])]
    sentinels = [token for token in inputs if token > START]
    assert sentinels == list(range(START + 1, START + 1 + len(sentinels))), "numbered in order"
    assert list(spans) == [*sentinels, START + 1 + len(sentinels)], "a last sentinel ends the target"
    return row, [len(spans[one]) for one in sentinels]


def test_the_example_of_the_paper() -> None:
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    part = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2, 3, 4]])
    inputs, targets = corrupted(torch.arange(10)[None], part, 100)
    said = {**dict(enumerate(words)), 100: "<X>", 101: "<Y>", 102: "<Z>"}
    assert " ".join(said[token] for token in inputs[0].tolist()) == "Thank you <X> me to your party <Y> week"
    assert " ".join(said[token] for token in targets[0].tolist()) == "<X> for inviting <Y> last <Z>"


def test_inputs_and_targets_hold_the_row() -> None:
    rows = TEXT.batch("train", 4, 2, 64, 100)[0]
    source, given, targets = SpanCorruption().batch(TEXT, "train", 4, 2, 64, 100)
    assert source.shape == (64, 100 - 15 + 5)
    assert targets.shape == (64, 15 + 5 + 1)
    assert torch.equal(given[:, 1:], targets[:, :-1])
    assert given[:, 0].unique().tolist() == [START]
    lengths = []
    for row, inputs, target in zip(rows.tolist(), source.tolist(), targets.tolist()):
        found, spans = rebuilt(inputs, target)
        assert found == row
        assert sum(spans) == 15
        assert inputs[0] <= START < inputs[-1], "a row begins with a kept token and ends with a span"
        lengths += spans
    assert sum(lengths) / len(lengths) == 3.0


def test_divisions_are_equally_likely() -> None:
    """6 tokens in 3 parts: ten divisions, each with probability 1/10."""
    generator = torch.Generator().manual_seed(0)
    found = Counter(map(tuple, random_lengths(4000, 6, 3, generator).tolist()))
    assert len(found) == 10
    assert all(sum(lengths) == 6 and min(lengths) >= 1 for lengths in found)
    assert max(abs(count - 400) for count in found.values()) < 4.5 * (4000 * 0.09) ** 0.5


@pytest.mark.parametrize(
    ("length", "settings", "counts"),
    [(100, {}, (15, 5)), (512, {}, (77, 26)), (2, {}, (1, 1)), (10, {"rate": 0.9, "mean_length": 1}, (9, 1))],
)
def test_numbers_of_tokens_and_spans(length: int, settings: dict, counts: tuple[int, int]) -> None:
    objective = SpanCorruption(**settings)
    assert objective.counts(length) == counts
    source, _, targets = objective.batch(TEXT, "test", 0, 0, 3, length)
    assert (source.shape[1], targets.shape[1]) == objective.lengths(TEXT, length)


def test_the_loss_of_the_saved_model_by_a_loop() -> None:
    trial, result, model = trained("xtransformer", "span_corruption")
    [entry] = result["evaluation"]
    found = []
    for source, given, targets in held_out(trial):
        with torch.no_grad():
            context = model.encoder(source, return_embeddings=True)
            found.append((model.decoder.net(given, context=context), targets))
    loss, accuracy, count = mean_nats(found)
    assert entry["nats"] == pytest.approx(loss, abs=2e-6)
    assert (entry["accuracy"], entry["tokens"]) == (accuracy, count)
    assert model.flags["enc_num_tokens"] == model.flags["dec_num_tokens"] == 256 + 1 + 2

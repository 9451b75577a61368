"""Masked LM and masked diffusion: what is masked, how often, and the loss, by loops over the rows."""

from __future__ import annotations

import math

import pytest
import torch
from objective_runs import held_out, mean_nats, nats, trained, trial_of

from flagformer.lab.data import IGNORE
from flagformer.lab.data.copy_task import Copy
from flagformer.lab.data.stdlib import StandardLibrary
from flagformer.lab.objectives.masked_diffusion import MaskedDiffusion
from flagformer.lab.objectives.masked_lm import MaskedLM

LENGTH, ROWS = 40, 512
SYMBOLS = Copy(source="copy", symbols=50)


def masked(split: str = "train", **settings: object) -> tuple[torch.Tensor, ...]:
    """The original ids, and a large batch."""
    ids = SYMBOLS.batch(split, 7, 1, ROWS, LENGTH)[0]
    return ids, *MaskedLM(**settings).batch(SYMBOLS, split, 7, 1, ROWS, LENGTH)


def test_targets_are_the_tokens_at_the_chosen_positions() -> None:
    ids, inputs, targets = masked()
    chosen = targets != IGNORE
    assert chosen.sum(1).unique().tolist() == [6]  # 15 % of 40
    assert torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    share = chosen.float().mean(0)  # of each position; the standard deviation of a share is 0.016
    assert (share - 0.15).abs().max() < 4.5 * math.sqrt(0.15 * 0.85 / ROWS)


def test_replacements_are_80_10_10_within_sampling_error() -> None:
    ids, inputs, targets = masked()
    chosen = targets != IGNORE
    count, mask = int(chosen.sum()), inputs[chosen] == SYMBOLS.num_tokens
    kept = inputs[chosen] == ids[chosen]
    vocabulary = SYMBOLS.num_tokens
    wanted = {"mask": 0.8, "kept": 0.1 + 0.1 / vocabulary, "other": 0.1 * (1 - 1 / vocabulary)}
    found = {"mask": mask, "kept": kept, "other": ~mask & ~kept}
    for name, share in wanted.items():
        error = math.sqrt(share * (1 - share) / count)
        assert found[name].float().mean().item() == pytest.approx(share, abs=4.5 * error), name
    drawn = inputs[chosen][found["other"]]
    assert drawn.max() < vocabulary
    assert len(drawn.unique()) > 0.9 * vocabulary


@pytest.mark.parametrize(("split", "settings"), [("train", {"replace": "mask"}), ("test", {})])
def test_all_chosen_tokens_become_the_mask(split: str, settings: dict) -> None:
    _, inputs, targets = masked(split, rate=0.3, **settings)
    assert torch.equal(inputs == SYMBOLS.num_tokens, targets != IGNORE)
    assert (targets != IGNORE).sum(1).unique().tolist() == [12]


def test_the_loss_of_masked_tokens_by_a_loop() -> None:
    trial, result, model = trained("encoder", "masked_lm")
    [entry] = result["evaluation"]
    text = trial.source
    found = []
    for step, (inputs, targets) in enumerate(held_out(trial)):
        rows = text.batch("test", step, 0, 4, 24)[0]
        whole = torch.where(targets == IGNORE, inputs, targets)
        assert torch.equal(whole, rows), "masked rows and targets together are the rows of the text"
        with torch.no_grad():
            found.append((model(inputs), targets))
    loss, accuracy, count = mean_nats(found)
    assert entry["nats"] == pytest.approx(loss, abs=2e-6)
    assert entry["pseudo_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert (entry["accuracy"], entry["tokens"]) == (accuracy, count)


def test_numbers_of_diffusion_are_uniform_and_evenly_spaced_in_evaluation() -> None:
    text = StandardLibrary(mib=1.0)
    _, targets = MaskedDiffusion().batch(text, "train", 3, 0, 2048, 8)
    counts = (targets != IGNORE).sum(1).bincount(minlength=9)
    assert counts[0] == 0
    assert (counts[1:] / 2048 - 1 / 8).abs().max() < 4.5 * math.sqrt(7 / 64 / 2048)
    _, targets = MaskedDiffusion().batch(text, "test", 3, 0, 8, 8)
    assert (targets != IGNORE).sum(1).tolist() == list(range(1, 9))


def test_the_bound_of_diffusion_by_a_loop() -> None:
    trial, result, model = trained("encoder", "masked_diffusion")
    [entry] = result["evaluation"]
    total, tokens = 0.0, 0
    for inputs, targets in held_out(trial):
        with torch.no_grad():
            logits = model(inputs)
        for row, wanted in enumerate(targets):
            places = [place for place, target in enumerate(wanted.tolist()) if target >= 0]
            losses = [nats(logits[row, place], int(wanted[place])) for place in places]
            total += sum(losses) * len(wanted) / len(places)
            tokens += len(wanted)
    assert entry["nats"] == pytest.approx(total / tokens, rel=2e-6)
    assert entry["bits_per_byte"] == pytest.approx(total / tokens / math.log(2), rel=2e-6)


def test_the_bound_is_exact_for_a_model_that_knows_each_token_alone() -> None:
    """Independent tokens with known probabilities: the mean bound is their entropy, for every number."""
    targets = torch.tensor([[3, IGNORE, IGNORE], [3, 3, IGNORE], [3, 3, 3]])
    logits = torch.zeros(3, 3, 4)
    losses = MaskedDiffusion().losses(logits, targets)
    torch.testing.assert_close(losses.mean(1), torch.full((3,), math.log(4)))
    assert MaskedDiffusion().counted(targets).all()


def test_the_trial_reads_the_mask_token() -> None:
    assert trial_of("encoder", "masked_lm").model_flags["num_tokens"] == 257

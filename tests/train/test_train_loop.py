"""One update: loss weights, clipping, decay, and refusals."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer.lab.data import IGNORE
from flagformer.lab.objectives import token_losses
from flagformer.lab.train.config import TrainConfig
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.optimizers.groups import make_optimizer

VOCABULARY = 7


class Bigram(nn.Module):
    """The smallest model with a matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)
        self.bias = nn.Parameter(torch.ones(VOCABULARY))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids) + self.bias


def uneven_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight rows with 1 to 8 scored targets: a mean of means would differ."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(VOCABULARY, (8, 8), generator=generator)
    targets = torch.randint(VOCABULARY, (8, 8), generator=generator)
    return inputs, targets.masked_fill(torch.ones(8, 8).triu(1).bool(), IGNORE)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_an_update_does_not_depend_on_the_micro_batches(accumulate):
    whole, divided = Bigram(), Bigram()
    steps = []
    for model, parts in ((whole, 1), (divided, accumulate)):
        config = TrainConfig(batch_size=8, accumulate=parts)
        optimizer = make_optimizer(model, config)
        steps += [train_step(model, optimizer, uneven_batch(), 0.01, config) for _ in range(3)]
    for one, two in zip(steps[:3], steps[3:]):
        # fp32 sums in another order: a few units in the last digit
        assert one.loss == pytest.approx(two.loss, rel=1e-6)
        assert one.gradient_norm == pytest.approx(two.gradient_norm, rel=1e-5)
    # AdamW divides by the gradient's size: for tiny gradients, rounding grows to a fraction of lr
    torch.testing.assert_close(whole.state_dict(), divided.state_dict(), rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_scored_tokens():
    model = Bigram()
    inputs, targets = uneven_batch()
    config = TrainConfig(batch_size=8, clip=0)
    expected = [
        -model(inputs)[row, place].log_softmax(-1)[targets[row, place]].item()
        for row in range(8)
        for place in range(row + 1)
    ]
    step = train_step(model, make_optimizer(model, config), (inputs, targets), 0.01, config)
    assert step.loss == pytest.approx(sum(expected) / 36, rel=1e-6)
    assert step.gradient_norm is None


def test_token_losses_are_zero_at_ignored_targets():
    inputs, targets = uneven_batch()
    found = token_losses(Bigram()(inputs).bfloat16(), targets)
    assert found.dtype == torch.float32
    assert found.shape == targets.shape
    assert torch.equal(found == 0, targets == IGNORE)


def test_clipping_bounds_the_applied_gradient(monkeypatch):
    model = Bigram()
    config = TrainConfig(batch_size=8, clip=0.01)
    optimizer = make_optimizer(model, config)
    applied = []
    monkeypatch.setattr(optimizer, "step", lambda: applied.extend(p.grad.norm() for p in model.parameters()))
    step = train_step(model, optimizer, uneven_batch(), 0.01, config)
    assert step.gradient_norm > 0.01, "the norm that is logged is the one before clipping"
    assert torch.stack(applied).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_matrices_decay_and_vectors_do_not():
    model = Bigram()
    groups = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {id(model.table.weight): 0.3, id(model.bias): 0.0}


def test_frozen_parameters_are_skipped():
    model = Bigram()
    model.bias.requires_grad_(False)
    groups = make_optimizer(model, TrainConfig()).param_groups
    assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_loss_that_is_not_finite_changes_nothing(clip):
    model = Bigram()
    with torch.no_grad():
        model.bias[0] = float("inf")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = TrainConfig(batch_size=8, clip=clip)
    step = train_step(model, make_optimizer(model, config), uneven_batch(), 0.01, config)
    assert not step.finite
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("accumulate", [1, 4])
def test_centroids_update_once_and_extra_losses_are_trained(accumulate):
    """The same update for any number of micro-batches; the reported loss is the cross entropy only."""
    flags = {
        "num_tokens": VOCABULARY, "max_seq_len": 8, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8,
        "num_clusters": 2, "window_size": 3,
    }  # fmt: skip
    inputs, targets = uneven_batch()
    found = {}
    for factor, parts in ((0.0, 1), (5.0, accumulate)):
        torch.manual_seed(0)
        model = flagformer.build({**flags, "commitment_factor": factor}).train()
        expected = token_losses(model.eval()(inputs), targets).sum() / (targets != IGNORE).sum()
        config = TrainConfig(batch_size=8, accumulate=parts)
        step = train_step(model.train(), make_optimizer(model, config), (inputs, targets), 0.01, config)
        assert step.loss == pytest.approx(expected.item(), rel=1e-5)
        found[factor] = model.state_dict()
    centroids = [name for name in found[0.0] if "kmeans" in name]
    for name in centroids:  # the tokens of the same first forward
        torch.testing.assert_close(found[0.0][name], found[5.0][name], rtol=0, atol=1e-6)
        assert found[0.0][name].abs().sum() > 0
    weight = "attn_layers.sublayers.0.fn.source.projection.to_qkv.weight"
    assert (found[0.0][weight] - found[5.0][weight]).abs().max() > 1e-4

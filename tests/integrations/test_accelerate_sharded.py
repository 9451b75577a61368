"""accelerate with FSDP2 on two ranks: the losses and weights of one process, also after a resume."""

import pytest
import torch

for package in ("accelerate", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install flagformer[trainers]")

from sharded_accelerate import FLAGS, SAVED, STEPS, batch, model_of, optimizer_of, train_sharded  # noqa: E402

from forked import run_ranks  # noqa: E402


def plain(name):
    """(losses, model) of one process that reads the rows of both ranks."""
    model, losses = model_of(name), []
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        loss = model(batch(step), labels=batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.eval()


def test_two_ranks_equal_one_process(tmp_path):
    """Losses, weights and greedy text, to 1e-5; one pair of processes, which takes seconds."""
    run_ranks(train_sharded, tmp_path, tmp_path)
    for name in FLAGS:
        want, model = plain(name)
        of_ranks = [torch.load(tmp_path / f"{name}-losses-{rank}.pt") for rank in (0, 1)]
        found = [sum(both) / 2 for both in zip(*of_ranks)]
        assert found == pytest.approx([*want, *want[SAVED:]], abs=1e-5)
        assert want[-1] < want[0]
        text = model.generate(batch(0), max_new_tokens=4, do_sample=False)
        for resumed in (False, True):
            weights, generated = torch.load(tmp_path / f"{name}-resumed-{resumed}.pt")
            torch.testing.assert_close(weights, model.state_dict(), rtol=0, atol=1e-5)
            assert torch.equal(generated, text)

"""A loop that never moves the centroids warns once; loops that do, accumulate or evaluate do not."""

import copy
import pickle
import warnings

import pytest
import torch

import flagformer

FLAGS = {
    "num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8,
    "num_clusters": 2, "window_size": 4,
}  # fmt: skip
IDS = torch.arange(24).view(2, 12) % 11


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train(model, optimizer, steps=4, forwards=1, after=lambda: None):
    """The warnings of `count` steps."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            for _ in range(forwards):
                model(IDS).float().logsumexp(-1).mean().backward()
            optimizer.step()
            after()
            optimizer.zero_grad()
    return [str(one.message) for one in said if "update_kmeans" in str(one.message)]


@pytest.mark.parametrize("form", ["built", "copied", "pickled", "context"])
def test_a_loop_that_moves_nothing_warns_once(form):
    model = flagformer.build(FLAGS)
    if form == "copied":
        model = copy.deepcopy(model)
    if form == "pickled":
        model = pickle.loads(pickle.dumps(model))
    if form == "context":
        flags = {name: value for name, value in FLAGS.items() if name not in ("num_clusters", "window_size")}
        model = flagformer.build({**flags, "cross_attend": True, "context_num_clusters": 2})
        model.forward = lambda ids, read=model.forward: read(ids, context=torch.ones(2, 5, 16))
    said = train(model.train(), optimizer_of(model))
    assert len(said) == 1
    assert "`model.update_kmeans()` after each `optimizer.step()`" in said[0]
    assert not train(model, optimizer_of(model))


def test_loops_that_move_them_do_not_warn():
    model = flagformer.build(FLAGS).train()
    assert not train(model, optimizer_of(model), forwards=3, after=model.update_kmeans)
    assert not train(model, optimizer_of(model)), "after one explicit call there is no warning"
    model = flagformer.build(FLAGS).train()
    optimizer = optimizer_of(model)
    optimizer.register_step_post_hook(lambda *_: model.update_kmeans())
    before = [buffer.clone() for name, buffer in model.named_buffers() if name.endswith("means")]
    assert not train(model, optimizer)
    after = [buffer for name, buffer in model.named_buffers() if name.endswith("means")]
    assert not any(map(torch.equal, before, after)), "the optimizer hook updates them"


def test_other_optimizers_eval_and_accumulation_do_not_warn():
    model = flagformer.build(FLAGS).train()
    other = torch.nn.Linear(2, 2)
    assert not train(model, optimizer_of(other)), "another model's optimizer"
    tested = flagformer.build(FLAGS).eval()
    assert not train(tested, optimizer_of(tested))
    model = flagformer.build(FLAGS).train()
    assert not train(model, optimizer_of(model), steps=1, forwards=5)

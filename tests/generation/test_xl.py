"""Long texts in segments: the loss and the generation equal those of manual segments."""

import pytest
import torch
import torch.nn.functional as F

import flagformer
from flagformer import AutoregressiveWrapper, XLAutoregressiveWrapper
from perturbed_models import perturbed

SIZES = {"num_tokens": 11, "max_seq_len": 4, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
# fp32 sums of magnitude about 1 in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def net(**flags):
    return perturbed({**SIZES, "rotary_pos_emb": True, "max_mem_len": 6, **flags})


def text(length=15, rows=3):
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(1))


def logits_of(model, ids, **how):
    """The loss of every token, with segments run manually."""
    found, mems = [], None
    for start in range(0, ids.shape[1], 4):
        part = {name: value[:, start : start + 4] for name, value in how.items()}
        logits, mems = model(ids[:, start : start + 4], mems=mems, return_mems=True, **part)
        found.append(logits)
    return torch.cat(found, dim=1)


def test_loss_is_the_mean_over_all_targets():
    model, x = net(), text()
    x[1, 9:] = -100
    x[2, 3] = -100
    ids = x.masked_fill(x == -100, 0)
    logits = logits_of(model, ids[:, :-1])
    want = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(XLAutoregressiveWrapper(model)(x), want, **CLOSE)


def test_memories_of_the_whole_text_give_the_loss_of_one_pass():
    model = net(max_mem_len=16)
    long = flagformer.build({**model.flags, "max_seq_len": 16})
    long.load_state_dict(model.state_dict())
    x, mask = text(), torch.arange(15) < torch.tensor([[15], [15], [7]])
    for how in ({}, {"mask": mask}):
        want = AutoregressiveWrapper(long)(x, **how)
        torch.testing.assert_close(XLAutoregressiveWrapper(model)(x, **how), want, **CLOSE)


def test_a_text_in_two_calls():
    model, x = XLAutoregressiveWrapper(net()), text(17)
    whole = model(x)
    first, mems = model(x[:, :9], return_mems=True)
    second, _ = model(x[:, 8:], mems, return_mems=True)
    torch.testing.assert_close((first + second) / 2, whole, **CLOSE)


def test_gradient_passes_between_segments_on_request():
    grads = []
    for detach in (True, False):
        model = XLAutoregressiveWrapper(net())
        model(text(), detach_mems=detach).backward()
        grads.append([p.grad for p in model.parameters()])
    assert max((one - other).abs().max() for one, other in zip(*grads)) > 1e-4


def test_per_token_inputs_are_split_with_their_segment():
    model, x = net(embed_num_tokens={"type": 3}, cross_attend=True), text()
    kinds, context = {"type": x % 3}, torch.randn(3, 5, 16)
    long = flagformer.build({**model.flags, "max_mem_len": 16})
    long.load_state_dict(model.state_dict())
    want = F.cross_entropy(
        long(x[:, :-1], embed_ids={"type": x[:, :-1] % 3}, context=context).flatten(0, 1), x[:, 1:].flatten()
    )
    got = XLAutoregressiveWrapper(long)(x, embed_ids=kinds, context=context)
    torch.testing.assert_close(got, want, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("start", [1, 3, 4, 5, 8, 9])
def test_greedy_tokens_equal_those_of_manual_segments(start):
    model = net().eval()
    got = XLAutoregressiveWrapper(model).generate(text(start), 10, temperature=0)
    row = text(start)
    for _ in range(10):
        row = torch.cat([row, logits_of(model, row)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(got, row[:, start:])


@torch.no_grad()
def test_generation_after_memories():
    model = net(max_mem_len=16).eval()
    x = text(7)
    wrapper = XLAutoregressiveWrapper(model)
    _, mems = model(x[:, :4], return_mems=True)
    got = wrapper.generate(x[:, 4:], 6, temperature=0, mems=mems)
    assert torch.equal(got, wrapper.generate(x, 6, temperature=0))
    one = wrapper.generate(x[0].tolist(), 3, temperature=0)
    assert torch.equal(one, wrapper.generate(x, 3, temperature=0)[0])


def test_modes_seeds_and_ends():
    model = XLAutoregressiveWrapper(net(ff_dropout=0.5)).train()
    draws = [model.generate(text(5), 12, seed=3) for _ in range(2)]
    assert torch.equal(*draws)
    assert model.training
    assert model.net.training
    ended = model.generate(text(5), 12, eos_token=int(draws[0][0, 2]), seed=3)
    assert (ended[0, 3:] == 0).all()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"max_mem_len": 0}, "build it with `max_mem_len` or `num_memory_slots`"),
        ({"rotary_pos_emb": False}, "`net` has learned positions for 4 tokens"),
        ({"max_seq_len": 0}, "its `max_seq_len` is 0"),
        ({"model": "encoder"}, "`net` must be causal"),
    ],
)
def test_unsupported_models(flags, says):
    with pytest.raises(ValueError, match=says):
        XLAutoregressiveWrapper(net(**flags))


def test_messages():
    model = XLAutoregressiveWrapper(net())
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B, T\] with T at least 2"):
        model(text(1))
    with pytest.raises(ValueError, match="`start_tokens` must be of one length"):
        model.generate([[1, 2], [3]], 4)
    with pytest.raises(ValueError, match="`seq_len` must be a whole number"):
        model.generate(text(3), 0)
    with pytest.raises(ValueError, match="`mems` must hold 2 tensors"):
        model(text(), [torch.zeros(3, 2, 16)])
    with pytest.raises(ValueError, match="`pad_value` must be an id from 0 to 10"):
        XLAutoregressiveWrapper(net(), pad_value=11)

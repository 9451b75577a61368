"""Each mixer gives the same numbers however a row is read: whole, in blocks, padded, packed; fp64, 1e-9."""

import pytest
import torch
from mixer_models import DIMS, EVERY, NAMES, close, mixer, pieces, read, rows, start, whole

from flagformer.mixer.tokens import BlockTokens

LENGTHS = [1, 7, 15, 63, 286, 300]
SIZES = [[1], [2], [3, 4], [16], [17], [1, 2, 16, 64, 65]]


@EVERY
@pytest.mark.parametrize("length", LENGTHS)
def test_blocks_are_the_whole(name, length):
    model, x = mixer(name), rows(2, length)
    want, state = whole(model, x)
    for sizes in SIZES:
        got, after = read(model, x, pieces(length, sizes))
        close(got, want)
        for field, value in after.items():
            close(value, state[field])


def masks(kind, length):
    index, counts = torch.arange(length), torch.tensor([length, (length + 1) // 2, 1, 0])[:, None]
    if kind == "left":
        return index >= length - counts
    if kind == "right":
        return index < counts
    return torch.rand(4, length, generator=torch.Generator().manual_seed(5)) < 0.5


@EVERY
@pytest.mark.parametrize("kind", ["left", "right", "holes"])
@pytest.mark.parametrize("length", LENGTHS)
def test_padding_changes_nothing(name, kind, length):
    """The outputs of valid tokens, and of the tokens after them, are those of the rows without padding."""
    model, x, valid = mixer(name), rows(4, length), masks(kind, length)
    more = rows(4, 6, seed=2)
    noisy = x.masked_fill(~valid[..., None], 1e30)
    plain, _ = whole(model, noisy, BlockTokens(valid))
    assert plain.isfinite().all()
    for blocks in ([length], pieces(length, [1, 2, 5]), pieces(length, [16, 17])):
        got, state = read(model, noisy, blocks, valid)
        later, _ = read(model, more, [2, 4], state=state)
        for row in range(4):
            own = x[row][valid[row]][None]
            single = start(model, own)
            if own.shape[1]:
                alone, single = whole(model, own)
                close(plain[row][valid[row]][None], alone)
                close(got[row][valid[row]][None], alone)
            close(later[row][None], read(model, more[row][None], [6], state=single)[0])


@EVERY
def test_masked_tokens_leave_the_state(name):
    model, x = mixer(name), rows(2, 20)
    state = whole(model, x)[1]
    after = read(model, x[:, :3], [1, 2], torch.zeros(2, 3, dtype=torch.bool), state)[1]
    for field, value in after.items():
        assert torch.equal(value, state[field])


@EVERY
def test_packed_documents_are_separate(name):
    model, x = mixer(name), rows(2, 70)
    lengths, segments = [[30, 1, 2, 37], [7, 40, 16, 5]], torch.full((2, 70), 9)
    for row, each in enumerate(lengths):
        segments[row, : sum(each)] = torch.arange(4).repeat_interleave(torch.tensor(each))
    holes = torch.rand(2, 70, generator=torch.Generator().manual_seed(4)) < 0.8
    for valid in (segments < 9, (segments < 9) & holes):
        tokens = BlockTokens.packed(segments, valid)
        got, after = whole(model, x.masked_fill(~valid[..., None], 1e30), tokens)
        for row in range(2):
            for number in range(4):
                own = valid[row] & (segments[row] == number)
                if not own.any():
                    continue
                alone, state = whole(model, x[row][own][None])
                close(got[row][own][None], alone)
            for field, value in state.items():
                close(after[field][row][None], value)


@EVERY
def test_packing_without_padding(name):
    model, x = mixer(name), rows(2, 40)
    segments = (torch.arange(40) >= torch.tensor([[25], [1]])).long()
    got, _ = whole(model, x, BlockTokens.packed(segments))
    close(got[0, 25:][None], whole(model, x[:1, 25:])[0])
    close(got[1, :1][None], whole(model, x[1:, :1])[0])


@EVERY
def test_no_output_depends_on_later_tokens(name):
    model, x = mixer(name), rows(2, 40)
    changed = x.clone()
    changed[:, 25:] += 1
    one, two = whole(model, x)[0], whole(model, changed)[0]
    assert torch.equal(one[:, :25], two[:, :25])
    assert not torch.allclose(one[:, 25:], two[:, 25:])


@EVERY
def test_gradients_in_blocks_are_those_of_the_whole(name):
    model, x = mixer(name), rows(2, 40)
    found = []
    for blocks in ([40], [1] * 40, [3, 17, 20]):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        read(model, leaf, blocks)[0].square().sum().backward()
        found.append([leaf.grad, *(p.grad.clone() for p in model.parameters())])
    for other in found[1:]:
        for one, two in zip(other, found[0]):
            close(one, two, 1e-8)


@EVERY
def test_padding_has_no_gradient(name):
    model, valid = mixer(name), masks("holes", 20)
    x = rows(4, 20).requires_grad_()
    whole(model, x, BlockTokens(valid))[0][valid].square().sum().backward()
    assert not x.grad[~valid].any()


@EVERY
def test_bfloat16_in_steps_is_as_exact_as_the_whole(name):
    """The parts of the state that are kept in full precision are fp32, the others bf16."""
    model, x = mixer(name).requires_grad_(False), rows(2, 130)
    exact = whole(model, x)[0]
    model, x = model.bfloat16(), x.bfloat16()
    outputs = [whole(model, x)[0], read(model, x, [1] * 130)[0]]
    errors = [float((out.double() - exact).square().mean().sqrt()) for out in outputs]
    assert errors[1] < 1.1 * errors[0], errors
    state = whole(model, x)[1]
    for field, one in model.fields().items():
        assert state[field].dtype == (torch.float32 if one.full else torch.bfloat16)


@EVERY
def test_a_mixer_is_a_module_of_the_library(name):
    """Meta device, reset, and projections that adapters wrap are called."""
    with torch.device("meta"):
        meta = mixer(name)
    assert whole(meta, torch.empty(2, 40, DIMS.dim, device="meta", dtype=torch.float64))[0].shape == (
        2,
        40,
        24,
    )
    model = mixer(name)
    called = set()
    for part, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, part=part: called.add(part))
    whole(model, rows(1, 9))
    assert called == {part for part, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    for module in model.modules():
        assert not module._parameters or hasattr(module, "reset_parameters")


@pytest.mark.parametrize("name", NAMES)
def test_compiled_in_one_graph(name):
    """At 2,048 tokens, with padding and a gradient, in seconds."""
    model, x = mixer(name).float(), rows(1, 2048).float()
    tokens = BlockTokens(torch.arange(2048)[None] >= 7)
    run = torch.compile(lambda x: whole(model, x, tokens), backend="aot_eager", fullgraph=True)
    out, _ = run(x.requires_grad_())
    close(out, whole(model, x, tokens)[0], 1e-4)
    out.sum().backward()

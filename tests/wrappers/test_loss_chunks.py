"""A loss in chunks equals the loss, and [B, T, V] is never allocated."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import flagformer
from flagformer import AutoregressiveWrapper, XTransformer
from flagformer.ops.cross_entropy import chunked_cross_entropy

LM = {"num_tokens": 101, "max_seq_len": 64, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
HEADS = {
    "linear": {},
    "tied": {"tie_embedding": True},
    "tied, narrower": {"tie_embedding": True, "emb_dim": 12},
    "tied, of unit length": {"tie_embedding": True, "l2norm_embed": True},
}


def model(**flags):
    torch.manual_seed(2)
    return flagformer.build({**LM, **flags})


def ids():
    x = torch.randint(101, (3, 40), generator=torch.Generator().manual_seed(3))
    x[0, 21:] = -100
    return x


def step(net, chunks, autocast=False, **how):
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, outputs = AutoregressiveWrapper(net, loss_chunks=chunks)(ids(), return_outputs=True, **how)
    (3 * loss).backward()
    return loss.detach(), [p.grad for p in net.parameters()], outputs


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("chunks", [2, 7, 1000])
def test_loss_and_gradients_are_the_same(head, chunks):
    net = model(**HEADS[head])
    mask = torch.arange(40) < torch.tensor([[40], [33], [40]])
    for how in ({}, {"mask": mask}, {"seq_lens": [[12, 9], [40], [20, 20]]}):
        loss, grads, outputs = step(net, chunks, **how)
        wanted, wanted_grads, full = step(net, 1, **how)
        assert outputs.logits is None
        assert torch.equal(outputs.embeddings, full.embeddings)
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
        for one, other in zip(grads, wanted_grads):
            # sums over 101 logits and 117 tokens, in another order
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("head", HEADS)
def test_bf16_autocast(head):
    net = model(**HEADS[head])
    loss, grads, _ = step(net, 5, autocast=True)
    wanted, wanted_grads, _ = step(net, 1, autocast=True)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for one, other in zip(grads, wanted_grads):
        # the gradient of logits has 8 bits in both, rounded at different steps
        assert (one - other).norm() <= 2e-2 * other.norm()


def test_function_in_fp64():
    """Of every input of the logits: leaf weights, and one computed from another."""
    torch.manual_seed(1)
    features = torch.randn(1, 7, 3, dtype=torch.float64, requires_grad=True)
    source = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 4, -1, 2, 2, -1, 1]])
    found = []
    for chunked in (True, False):
        weight = source.exp()
        if chunked:
            loss = chunked_cross_entropy(
                lambda x, weight=weight: x @ weight.T + bias, features, targets, -1, 3
            )
        else:
            loss = F.cross_entropy((features @ weight.T + bias)[0], targets[0], ignore_index=-1)
        found.append((loss, *torch.autograd.grad(loss.square(), (features, source, bias))))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_large_logits():
    x, targets = 1e4 * torch.eye(3)[None], torch.tensor([[0, 1, 2]])
    assert chunked_cross_entropy(lambda x: x, x, targets, -100, 2) == 0
    far = chunked_cross_entropy(lambda x: x, x, targets.roll(1), -100, 2)
    torch.testing.assert_close(far, torch.tensor(1e4))


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_without_targets(head):
    """The mean over no target is NaN, and its gradient 0, in chunks and without."""
    x = torch.full((2, 6), -100)
    x[:, 0] = 3
    for chunks in (1, 3):
        net = model(**HEADS[head])
        loss = AutoregressiveWrapper(net, loss_chunks=chunks)(x)
        loss.backward()
        assert loss.isnan()
        assert all(p.grad is None or not p.grad.any() for p in net.parameters())


class Largest(TorchDispatchMode):
    """The number of elements of the largest operator output."""

    size = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        found = operator(*arguments, **(keywords or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, torch.Tensor):
                self.size = max(self.size, one.numel())
        return found


def test_logits_are_never_whole():
    net, whole = model(num_tokens=5000), 3 * 39 * 5000
    sizes = {}
    for chunks in (1, 13):
        with Largest() as seen:
            AutoregressiveWrapper(net, loss_chunks=chunks)(ids().clamp(min=0)).backward()
        sizes[chunks] = seen.size
    assert sizes[1] >= whole
    assert sizes[13] <= max(whole // 13, 5000 * 16)


def test_second_backward():
    """Like any loss: the same gradients with a retained graph, a clear error without."""
    net = model()
    parameters = list(net.parameters())
    loss = AutoregressiveWrapper(net, loss_chunks=4)(ids())
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    loss.backward()
    for one, two, parameter in zip(first, second, parameters):
        assert torch.equal(one, two)
        assert torch.equal(one, parameter.grad)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_parameter_hooks_run_once():
    net, seen = model(), []
    net.head.project.weight.register_hook(lambda grad: seen.append(grad.clone()))
    AutoregressiveWrapper(net, loss_chunks=4)(ids()).backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], net.head.project.weight.grad)


def test_compiled_it_is_one_graph():
    net = model()
    wrapper = AutoregressiveWrapper(net, loss_chunks=4)
    wanted = wrapper(ids())
    torch._dynamo.reset()
    loss = torch.compile(wrapper, fullgraph=True, backend="eager")(ids())
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    assert loss.requires_grad


def test_without_gradients():
    net = model()
    with torch.no_grad():
        loss = AutoregressiveWrapper(net, loss_chunks=4)(ids())
        wanted = AutoregressiveWrapper(net)(ids())
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    net.requires_grad_(False)
    assert not AutoregressiveWrapper(net, loss_chunks=4)(ids()).requires_grad


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match=r"`loss_chunks`.*at least 1, but is 0"):
        AutoregressiveWrapper(model(), loss_chunks=0)


def test_encoder_decoder():
    flags = {
        "dim": 16, "enc_num_tokens": 11, "enc_max_seq_len": 8, "enc_depth": 1, "enc_heads": 2,
        "dec_num_tokens": 13, "dec_max_seq_len": 8, "dec_depth": 1, "dec_heads": 2,
    }  # fmt: skip
    src, tgt = torch.randint(11, (2, 6)), torch.randint(13, (2, 7))
    tgt[1, 4:] = -100
    torch.manual_seed(3)
    whole = XTransformer(**flags)
    chunked = flagformer.build({**whole.flags, "loss_chunks": 3})
    chunked.load_state_dict(whole.state_dict())
    assert chunked.flags["loss_chunks"] == 3
    torch.testing.assert_close(chunked(src, tgt), whole(src, tgt), rtol=1e-6, atol=0)
    for one in (whole, chunked):
        one(src, tgt).backward()
    for one, other in zip(chunked.parameters(), whole.parameters()):
        assert (one.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max().clamp(min=1e-3)
    with pytest.raises(flagformer.FlagError, match="`loss_chunks` must be at least 1"):
        XTransformer(**flags, loss_chunks=0)

"""Every kernel of the catalogue equals eager attention on the features it supports, gradients included."""

import pytest
import torch
from property_subject import same

import flagformer
from flagformer.attention.kernels.eager import Eager
from flagformer.attention.scores import ScorePipeline
from flagformer.flags import CATALOGUE
from flagformer.flow import AttentionBias, Causal, DenseMask, Dims, Layout, Window
from flagformer.score.softmax import Softmax

B, H, T, K = 2, 4, 6, 8
KERNELS = {item.name: item for item in CATALOGUE.in_slot("kernel") if item.cls is not Eager}
PLAIN = Layout.arange(T, torch.device("cpu"))
RIGHT = PLAIN.masked_by(torch.arange(T) < torch.tensor([[T], [4]]))
LEFT = Layout.left_padded(torch.tensor([0, 3]), T)
PACKED = Layout.packed(torch.tensor([[2, 4, 0], [1, 2, 2]]), T)
SOME = DenseMask(torch.rand(B, H, T, T, generator=torch.Generator().manual_seed(0)) > 0.6)
ONE_ROW_BLIND = DenseMask((torch.arange(T)[:, None] != torch.tensor(2).expand(1, T))[None, None])

# name -> (rules, queries, keys); padding and segments are rules by their layouts
STANDINGS = {
    "every pair": ((), PLAIN, PLAIN),
    "causal": ((Causal(),), PLAIN, PLAIN),
    "one new query": ((Causal(),), Layout.arange(1, torch.device("cpu"), 5), PLAIN),
    "a chunk of queries": ((Causal(),), Layout.arange(3, torch.device("cpu"), 3), PLAIN),
    "window": ((Causal(), Window(1)), PLAIN, PLAIN),
    "right padding": ((Causal(),), RIGHT, RIGHT),
    "left padding": ((Causal(),), LEFT, LEFT),
    "packed": ((Causal(),), PACKED, PACKED),
    "given by head": ((SOME,), PLAIN, PLAIN),
    "a query without keys": ((ONE_ROW_BLIND,), PLAIN, PLAIN),
}


class GivenScores:
    """A position bias that is a tensor [1, H, T, S]."""

    saturation_distance = None

    def __init__(self, scores):
        self.scores = scores

    def between(self, queries, keys):
        return self.scores

    def relative_table(self, nearest, farthest, device):
        return None


def bias_of(rules, queries, keys, scores=None, num_prefix_kv=0):
    root = AttentionBias(rules, None if scores is None else GivenScores(scores), queries, keys)
    return root.narrowed(num_prefix_kv=num_prefix_kv)


def inputs(groups, standing, num_prefix_kv, width=K):
    _, queries, keys = STANDINGS[standing]
    generator, dtype = torch.Generator().manual_seed(4), torch.float64
    q = torch.randn(B, H, queries.length, K, generator=generator, dtype=dtype)
    k = torch.randn(B, groups, num_prefix_kv + keys.length, K, generator=generator, dtype=dtype)
    v = torch.randn(B, groups, num_prefix_kv + keys.length, width, generator=generator, dtype=dtype)
    bias = torch.randn(1, H, queries.length, keys.length, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (q, k, v)], bias


def path():
    return ScorePipeline(0.4, [], Softmax(Dims(dim=16, heads=H, dim_head=K)))


def output_and_gradients(kernel, qkv, pairs, *more):
    out = kernel(*qkv, pairs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [*qkv, *more])]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("num_prefix_kv", [0, 3])
@pytest.mark.parametrize("groups", [H, 2, 1])
def test_kernel_equals_eager(kernel, standing, biased, num_prefix_kv, groups):
    mask, queries, keys = STANDINGS[standing]
    qkv, bias = inputs(groups, standing, num_prefix_kv)
    pairs = bias_of(mask, queries, keys, bias if biased else None, num_prefix_kv)
    got = output_and_gradients(KERNELS[kernel].cls(path()), qkv, pairs)
    want = output_and_gradients(Eager(path()), qkv, pairs)
    for name, one, other in zip(("out", "dq", "dk", "dv"), got, want):
        same(one, other, name, tolerance=1e-12)  # fp64: a few roundings of numbers near 1


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("standing", STANDINGS)
@pytest.mark.parametrize("groups", [H, 2])
@pytest.mark.parametrize("width", [K // 2, K + 3])
def test_kernel_equals_eager_with_values_of_another_dim(kernel, standing, groups, width):
    mask, queries, keys = STANDINGS[standing]
    qkv, bias = inputs(groups, standing, 1, width)
    for added in (None, bias):
        pairs = bias_of(mask, queries, keys, added, 1)
        got = output_and_gradients(KERNELS[kernel].cls(path()), qkv, pairs)
        want = output_and_gradients(Eager(path()), qkv, pairs)
        assert got[0].shape == (B, H, queries.length, width)
        for name, one, other in zip(("out", "dq", "dk", "dv"), got, want):
            same(one, other, name, tolerance=1e-12)


@pytest.mark.parametrize("kernel", [*KERNELS, "Eager"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_query_without_keys_gives_zeros_and_gets_no_gradient(kernel, biased):
    mask, queries, keys = STANDINGS["a query without keys"]
    qkv, bias = inputs(H, "a query without keys", 0)
    pairs = bias_of(mask, queries, keys, bias if biased else None)
    made = (KERNELS[kernel].cls if kernel in KERNELS else Eager)(path())
    out, dq, dk, dv = output_and_gradients(made, qkv, pairs)
    assert (out[:, :, 2] == 0).all(), "a fully masked query must give zeros"
    assert (dq[:, :, 2] == 0).all(), "a fully masked query must get no gradient"
    assert (out[:, :, 1] != 0).all()
    for gradient in (dq, dk, dv):
        assert gradient.isfinite().all()


LEARNING = [name for name, item in KERNELS.items() if "learned_bias" not in item.lacks]


@pytest.mark.parametrize("kernel", LEARNING)
@pytest.mark.parametrize("standing", ["every pair", "causal", "left padding", "a query without keys"])
def test_kernel_that_supports_a_learned_bias_trains_it(kernel, standing):
    mask, queries, keys = STANDINGS[standing]
    qkv, bias = inputs(2, standing, 1)
    bias.requires_grad_()
    pairs = bias_of(mask, queries, keys, bias, 1)
    got = output_and_gradients(KERNELS[kernel].cls(path()), qkv, pairs, bias)
    want = output_and_gradients(Eager(path()), qkv, bias_of(mask, queries, keys, bias, 1), bias)
    for one, other in zip(got, want):
        same(one, other, "learned bias", tolerance=1e-12)
    assert got[-1].abs().max() > 1e-3


@pytest.mark.parametrize("kernel", [*KERNELS, "Eager"])
def test_dropout_acts_in_training_only_and_keeps_the_mean(kernel):
    qkv, _ = inputs(H, "every pair", 0)
    cls = KERNELS[kernel].cls if kernel in KERNELS else Eager
    pairs, plain = bias_of((), PLAIN, PLAIN), Eager(path())
    dropping = cls(path(), dropout=0.5)
    with torch.no_grad():
        same(dropping.eval()(*qkv, pairs), plain(*qkv, pairs), "eval mode", tolerance=1e-12)
        draws = torch.stack([dropping.train()(*qkv, pairs) for _ in range(2000)])
    assert not torch.equal(draws[0], draws[1])
    # standard error of 2000 draws: their spread is near 1, so 5 of them are 0.11
    same(draws.mean(0), plain(*qkv, pairs), "mean over draws", tolerance=0.15)


@pytest.mark.parametrize("flags", [{}, {"alibi_pos_bias": True}, {"attn_num_mem_kv": 2}])
def test_models_on_the_fused_kernel_equal_eager_ones(flags):
    common = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}
    fused = flagformer.build({**common, **flags, "attn_flash": True}).double()
    eager = flagformer.build({**common, **flags, "attn_flash": False}).double()
    eager.load_state_dict(fused.state_dict())
    ids = torch.randint(11, (2, 9))
    grads = []
    for model in (fused, eager):
        model(ids).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for name, one, other in zip(dict(fused.named_parameters()), *grads):
        same(one, other, name, tolerance=1e-12)


def test_gradcheck_of_the_eager_path():
    qkv, bias = inputs(2, "left padding", 1)
    bias.requires_grad_()
    mask, queries, keys = STANDINGS["left padding"]
    short = [tensor[:1, :, :, :2].detach().requires_grad_() for tensor in qkv]

    def attend(q, k, v, bias):
        return Eager(path())(q, k, v, bias_of(mask, _first(queries), _first(keys), bias, 1))

    assert torch.autograd.gradcheck(attend, (*short, bias))


def _first(layout):
    return Layout(layout.positions[1:], layout.valid[1:])

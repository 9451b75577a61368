"""Positions of every kind against their papers' formulas."""

import copy
import math

import pytest
import reference_formulas as paper
import torch

from flagformer.flow import Dims, Layout
from flagformer.ops.buckets import t5_bucket
from flagformer.position.absolute import Learned, NoAbsolute, Sinusoidal
from flagformer.position.alibi import ALiBi
from flagformer.position.dynamic import Dynamic
from flagformer.position.rotary import Rotary
from flagformer.position.t5 import T5

HEADS, WIDTH = 2, 8
DIMS = Dims(dim=16, heads=HEADS, dim_head=WIDTH, causal=True)
CPU = torch.device("cpu")
# The library computes angles and biases in fp32, the formulas here in fp64.
FP32 = {"rtol": 2e-6, "atol": 2e-6}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def turn(rotary, q, k, positions):
    layout = Layout(positions[None], contiguous_positions=False)
    angles = rotary.cos_sin(layout, q.dtype)
    return rotary.queries(q, angles), rotary.keys(k, angles)


@pytest.mark.parametrize(
    ("flags", "width", "base", "divisor"),
    [
        ({}, 8, 10000.0, 1.0),
        ({"rotated": 4}, 4, 10000.0, 1.0),
        ({"rotated": 2}, 2, 10000.0, 1.0),
        ({"interpolation": 4.0}, 8, 10000.0, 4.0),
        ({"rescale": 3.0}, 8, 10000.0 * 3.0 ** (8 / 6), 1.0),
    ],
)
def test_rotary(flags, width, base, divisor):
    rotary = Rotary(DIMS, **flags)
    q, k = double(1, HEADS, 5, WIDTH), double(1, 1, 5, WIDTH)
    positions = torch.tensor([0, 1, 2, 7, 40])
    for got, x in zip(turn(rotary, q, k, positions), (q, k)):
        for head in range(x.shape[1]):
            for i, position in enumerate(positions):
                want = paper.rotate(x[0, head, i], float(position) / divisor, width, base)
                # the angle itself is rounded to fp32: 40 * 2 ** -24
                torch.testing.assert_close(got[0, head, i], want, rtol=1e-5, atol=1e-5)
    assert torch.equal(turn(rotary, q, k, positions)[0][..., width:], q[..., width:])


def test_rotary_scores_depend_on_differences_only():
    """arXiv:2104.09864, equation 11."""
    rotary = Rotary(DIMS)
    q, k = double(1, 1, 1, WIDTH).expand(1, 1, 6, WIDTH), double(1, 1, 1, WIDTH).expand(1, 1, 6, WIDTH)
    scores = []
    for shift in (0, 17, 1000):
        turned_q, turned_k = turn(rotary, q, k, torch.arange(6) + shift)
        scores.append(turned_q @ turned_k.mT)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-3, atol=3e-4)  # fp32 angles near 1000
    diagonals = scores[0][0, 0]
    for distance in (1, 3):
        same = torch.diagonal(diagonals, -distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=1e-5, atol=1e-6)
    assert abs(diagonals[0, 0] - diagonals[3, 0]) > 1e-3


def test_base_rescale_slows_the_slowest_pair_by_its_factor():
    plain, stretched = Rotary(DIMS), Rotary(DIMS, rescale=5.0)
    q = torch.zeros(1, 1, 1, WIDTH, dtype=torch.float64)
    q[..., 0] = q[..., 3] = 1.0  # fastest and slowest pair
    at = [
        turn(r, q, q, torch.tensor([p]))[0][0, 0, 0] for r, p in ((plain, 3), (stretched, 3), (stretched, 15))
    ]
    torch.testing.assert_close(at[1][0], at[0][0], **FP32)  # the fastest pair rotates as before
    torch.testing.assert_close(at[2][7], at[0][7], **FP32)  # the slowest one needs 5 times as long
    assert abs(at[1][7] - at[0][7]) > 1e-4


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 8, 12, 16, 20])
def test_alibi_slopes(heads):
    bias = ALiBi(Dims(dim=16, heads=heads, dim_head=WIDTH, causal=True))(torch.tensor([0, 1, 6]))
    want = torch.tensor([[-slope * distance for slope in paper.slopes(heads)] for distance in (0, 1, 6)])
    torch.testing.assert_close(bias.float(), want, **FP32)


def test_alibi_before_the_scale():
    """(q . k - m d) / sqrt(K), as Falcon, is q . k / sqrt(K) - m d / sqrt(K)."""
    bias = ALiBi(DIMS, before_scale=True)(torch.tensor([2]))
    want = torch.tensor([[-slope * 2 / DIMS.dim_head**0.5 for slope in paper.slopes(HEADS)]])
    torch.testing.assert_close(bias.float(), want, **FP32)


def test_alibi_slopes_as_printed():
    """arXiv:2108.12409, section 3: 8 heads have 1/2 ... 1/256; 12 heads take 4 of the 16-head slopes too."""
    assert paper.slopes(8) == [2.0**-i for i in range(1, 9)]
    between = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert paper.slopes(12) == pytest.approx([2.0**-i for i in range(1, 9)] + between)


@pytest.mark.parametrize("given", [None, 1])
def test_alibi_bias(given):
    """Minus slope times distance, for causal and later keys; heads without slope have no bias."""
    queries, keys = Layout.arange(2, CPU, start=3), Layout.arange(5, CPU)
    bias = ALiBi(DIMS, heads=given).between(queries, keys)
    for head in range(HEADS):
        slope = paper.slopes(given or HEADS)[head] if head < (given or HEADS) else 0.0
        for i in range(2):
            for j in range(5):
                assert float(bias[0, head, i, j]) == pytest.approx(-slope * abs(3 + i - j), abs=1e-6)


# distance -> bucket, 32 buckets up to 128 (the T5 checkpoints), by the first distance of each bucket
CAUSAL_STARTS = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
    16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113,
]  # fmt: skip
BOTH_STARTS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]


def bucket_of(distance, starts):
    return max(i for i, start in enumerate(starts) if distance >= start)


def test_t5_causal_buckets():
    distances = torch.arange(-3, 400)
    want = [bucket_of(max(int(d), 0), CAUSAL_STARTS) for d in distances]
    assert t5_bucket(distances, 32, 128, causal=True).tolist() == want


def test_t5_bidirectional_buckets():
    """The upper half of the buckets belongs to later keys."""
    distances = torch.arange(-400, 400)
    want = [bucket_of(abs(int(d)), BOTH_STARTS) + (16 if d < 0 else 0) for d in distances]
    assert t5_bucket(distances, 32, 128, causal=False).tolist() == want


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_t5_bias(causal, scale):
    module = T5(Dims(dim=16, heads=HEADS, dim_head=WIDTH, causal=causal), scale=scale)
    module.table.data = torch.randn(32, HEADS)
    bias = module.between(Layout.arange(40, CPU), Layout.arange(40, CPU))
    for i, j in ((0, 0), (39, 0), (39, 20), (20, 39), (5, 3), (3, 5)):
        bucket = int(t5_bucket(torch.tensor(i - j), 32, 128, causal))
        want = module.table[bucket] * (math.sqrt(WIDTH) if scale is None else scale)
        torch.testing.assert_close(bias[0, :, i, j], want)


@pytest.mark.parametrize("log_distance", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_dynamic_bias(log_distance, norm, depth):
    """arXiv:2108.00154, section 3.3: an MLP of the distance; 2111.09883, equation 4, for its logarithm."""
    module = Dynamic(DIMS, log_distance=log_distance, norm=norm, depth=depth).double()
    weights = module.state_dict()
    bias = module.between(Layout.arange(3, CPU, start=4), Layout.arange(7, CPU))
    for i in range(3):
        for j in range(7):
            d = float(4 + i - j)
            x = torch.tensor([math.copysign(math.log(abs(d) + 1), d) if log_distance else d]).double()
            for layer in range(depth):
                x = weights[f"hidden.{layer}.0.weight"] @ x + weights[f"hidden.{layer}.0.bias"]
                x = paper.layer_norm(x, weights[f"hidden.{layer}.1.weight"]) if norm else x
                x = paper.swish(x)
            want = weights["out.weight"] @ x + weights["out.bias"]
            torch.testing.assert_close(bias[0, :, i, j], want, **FP32)


@pytest.mark.parametrize("low", ["autocast", "weights"])
def test_dynamic_bias_distinguishes_far_distances_in_bf16(low):
    """bf16 has no odd number from 257 on: the network must not take distances in it."""
    module = Dynamic(DIMS)
    distances = torch.arange(1000, 1004)
    want = module.double()(distances).diff(dim=0)
    module = module.bfloat16() if low == "weights" else module.float()
    if low == "weights":
        want = copy.deepcopy(module).double()(distances).diff(dim=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=low == "autocast"):
        got = module(distances).diff(dim=0)
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("make", [ALiBi, T5, Dynamic])
def test_biases_follow_explicit_positions(make):
    """The same bias for indices and equal explicit positions; other positions have other distances."""
    module = make(DIMS)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter)
    plain = Layout.arange(6, CPU)
    spread = Layout(torch.tensor([[0, 2, 4, 6, 8, 10]]), contiguous_positions=False)
    torch.testing.assert_close(
        module.between(Layout(plain.positions, contiguous_positions=False), plain),
        module.between(plain, plain),
    )
    every_second = module.between(Layout.arange(11, CPU), Layout.arange(11, CPU))[..., ::2, ::2]
    torch.testing.assert_close(module.between(spread, spread), every_second)


@pytest.mark.parametrize("make", [ALiBi, T5, Dynamic])
def test_decoding_row_is_the_last_row_of_the_bias(make):
    module = make(DIMS)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter)
    full = module.between(Layout.arange(7, CPU), Layout.arange(7, CPU))
    torch.testing.assert_close(module.decode_table(7, CPU), full[0, :, -1])


def test_learned_positions_look_up():
    module = Learned(6, 4)
    positions = torch.tensor([[3, 0, 1]])
    assert torch.equal(module(positions)[0], torch.stack([module.table.weight[p] for p in (3, 0, 1)]))
    assert module.limit == 4


def test_sinusoids():
    module = Sinusoidal(6, 4)
    assert module.scale.item() == pytest.approx(6**-0.5)
    got = module(torch.tensor([[0, 1, 9, 200]]))
    for i, position in enumerate((0, 1, 9, 200)):
        want = paper.sinusoid(position, 6).float() * module.scale.item()
        torch.testing.assert_close(got[0, i], want, rtol=1e-5, atol=1e-5)
    assert module.limit is None


def test_no_absolute_adds_nothing():
    assert torch.equal(torch.ones(1, 3, 6) + NoAbsolute(6, 4)(torch.arange(3)[None]), torch.ones(1, 3, 6))

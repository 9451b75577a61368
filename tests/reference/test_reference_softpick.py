"""Softpick against its formula."""

import math

import torch

from flagformer.flow import Dims
from flagformer.score.softpick import EPS, Softpick

DIMS = Dims(dim=6, heads=2, dim_head=4)


def test_formula():
    scores = 3 * torch.randn(1, 2, 3, 4, dtype=torch.float64)
    scores[..., 1] = float("-inf")  # not allowed
    want = []
    for row in scores.flatten(0, -2).tolist():
        shift = max(0.0, *row)
        above = [math.exp(score - shift) - math.exp(-shift) for score in row]
        size = sum(abs(a) for a, score in zip(above, row, strict=True) if score > float("-inf"))
        want.append([max(a, 0.0) / (size + EPS) for a in above])
    out = Softpick(DIMS)(scores)
    torch.testing.assert_close(out.flatten(0, -2), torch.tensor(want, dtype=torch.float64))
    assert (out[..., 1] == 0).all()


def test_a_query_may_attend_to_nothing():
    assert Softpick(DIMS)(torch.full((1, 1, 1, 3), -400.0)).eq(0).all()

"""One draw: very low temperatures, seeds, and logits that cannot be sampled."""

import math

import pytest
import torch

from flagformer import AutoregressiveWrapper
from flagformer.generation import Sampler
from perturbed_models import perturbed

LOGITS = torch.tensor([[0.0, 3.0, 1.0], [2.0, -math.inf, 1.5]])
LM = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-30, 1e-39, 1e-45, 1e-300, 5e-324])
def test_the_smallest_temperatures_take_the_most_likely_token(temperature, dtype):
    assert Sampler(temperature, seed=0)(LOGITS.to(dtype)).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e38, 1e39, 1e300])
def test_the_largest_temperatures_sample_evenly_from_the_filtered_tokens(temperature):
    logits = torch.tensor([[0.0, 3.0, -math.inf]]).expand(4000, -1)
    counts = Sampler(temperature, seed=0)(logits).bincount(minlength=3)
    assert counts[2] == 0
    assert abs(counts[0] - 2000) < 200  # six standard deviations of a fair coin


@pytest.mark.parametrize("temperature", [math.nan, math.inf, -1.0, 10**400, True, "1"])
def test_other_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a number of at least 0, but is"):
        Sampler(temperature)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63, 2**64 - 1])
def test_every_seed_of_torch_is_reproducible(seed):
    draws = [Sampler(10.0, seed=seed)(torch.zeros(1, 1000)).item() for _ in range(2)]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, True])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be a whole number from -2\*\*63 to 2\*\*64 - 1"):
        Sampler(seed=seed)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_named(wrong, temperature):
    logits = LOGITS.clone()
    logits[1, 2] = wrong
    with pytest.raises(ValueError, match=f"logits of the next token .* but it is {wrong}"):
        Sampler(temperature)(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_fully_filtered_row_is_named(temperature):
    with pytest.raises(ValueError, match=r"but it is -inf: .*`filter_logits_fn`"):
        Sampler(temperature)(torch.full((2, 3), -math.inf))


def test_a_model_that_overflows_generates_no_token():
    model = perturbed(LM)
    with torch.no_grad():
        model.head.project.weight[3] = math.nan
    wrapper = AutoregressiveWrapper(model)
    for draw in (lambda: wrapper.generate([1, 2], 3), lambda: wrapper.beam_search([1, 2], 3)):
        with pytest.raises(ValueError, match="but it is nan"):
            draw()

"""The decoding loop over a stub model: its inputs, draws, fills and untouched values."""

import pytest
import torch

from flagformer.generation import Prompts, Sampler, StoppingCriteria, decode, evaluating, read_prompts, top_k

GREEDY = Sampler(temperature=0)


def run(model, prompts, seq_len, sample=GREEDY, eos=None, pad=0, **how):
    with evaluating(model):
        return decode(
            model, read_prompts(prompts, None, 11, 0), StoppingCriteria(seq_len, eos, pad), sample, **how
        )


def test_greedy_equals_a_plain_loop_of_full_forwards(stand_in):
    row = [3, 1, 4]
    stand_in.eval()
    with torch.no_grad():
        for _ in range(6):
            row.append(stand_in(torch.tensor([row]))[0, -1].argmax().item())
    assert run(stand_in, [3, 1, 4], 6).tolist() == [row[3:]]


def test_with_a_state_every_token_is_an_input_once(stand_in):
    run(stand_in, [[3, 1, 4], [1, 5, 9]], 4)
    assert stand_in.reads == [(2, 3), (2, 1), (2, 1), (2, 1)]


def test_without_a_state_every_step_runs_the_whole_row(stand_in):
    run(stand_in, [[3, 1, 4]], 4, cached=False)
    assert stand_in.reads == [(1, 3), (1, 4), (1, 5), (1, 6)]


@pytest.mark.parametrize("window", [None, 2])
def test_cached_equals_uncached_token_for_token(stand_in, window):
    prompts = [[3, 1, 4], [1], [5, 9]]
    cached = run(stand_in, prompts, 9, window=window)
    assert torch.equal(cached, run(stand_in, prompts, 9, window=window, cached=False))


def test_the_window_has_an_effect(stand_in):
    assert not torch.equal(run(stand_in, [3, 1, 4], 12, window=1), run(stand_in, [3, 1, 4], 12))


def test_a_ragged_batch_equals_one_by_one(stand_in):
    prompts = [[3, 1, 4], [1], [5, 9]]
    together = run(stand_in, prompts, 9)
    for row, prompt in zip(together, prompts):
        assert torch.equal(row[None], run(stand_in, prompt, 9))


class Script:
    """A sampler that returns the columns of a table for any logits."""

    def __init__(self, table: list[list[int]]) -> None:
        self.columns = iter(torch.tensor(table).unbind(1))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return next(self.columns)


def test_rows_end_independently_and_are_filled(stand_in):
    sample = Script([[1, 7, 2, 7, 5], [3, 4, 5, 7, 6]])
    assert run(stand_in, [[2, 2], [2, 2]], 5, sample, eos=7, pad=9).tolist() == [
        [1, 7, 9, 9, 9],
        [3, 4, 5, 7, 9],
    ]


def test_the_loop_stops_when_all_rows_have_ended(stand_in):
    sample = Script([[1, 7], [7, 2]])  # a third draw would raise StopIteration
    assert run(stand_in, [[2, 2], [2, 2]], 50, sample, eos=7).tolist() == [[1, 7] + [0] * 48, [7] + [0] * 49]
    assert len(stand_in.reads) == 2


def test_an_eos_in_the_prompt_does_not_end_a_row(stand_in):
    assert run(stand_in, [[7, 2], [2, 7]], 2, Script([[1, 2], [3, 4]]), eos=7).tolist() == [[1, 2], [3, 4]]


def test_an_eos_that_is_also_the_padding_ends_rows(stand_in):
    sample = Script([[1, 0, 5], [0, 3, 0]])
    assert run(stand_in, [[2, 0], [0, 2]], 3, sample, eos=0).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_a_seed_repeats_and_leaves_the_global_generator_unchanged(stand_in):
    before = torch.get_rng_state()
    first, again, other = (run(stand_in, [[1], [2]], 20, Sampler(seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_seed_the_global_generator_is_used(stand_in):
    torch.manual_seed(3)
    first = run(stand_in, [1], 20, Sampler())
    assert not torch.equal(first, run(stand_in, [1], 20, Sampler()))
    torch.manual_seed(3)
    assert torch.equal(first, run(stand_in, [1], 20, Sampler()))


def test_draws_follow_the_softmax_of_the_tempered_logits():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = Sampler(temperature=2.0, seed=0)(logits.expand(40_000, 4))
    shares = draws.bincount(minlength=4) / 40_000
    # Five standard errors of a fraction near a half.
    assert torch.allclose(shares, (logits / 2).softmax(-1), atol=5 * 0.5 / 200)


def test_a_temperature_near_zero_is_the_most_likely_token():
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(Sampler(temperature=1e-40, seed=0)(logits), logits.argmax(-1))


def test_the_filter_limits_the_draws():
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)).expand(500, 30)
    drawn = Sampler(temperature=5.0, logits_filter=lambda values: top_k(values, k=3), seed=0)(logits)
    assert set(drawn.tolist()) == set(logits[0].topk(3).indices.tolist())


def test_a_filter_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"must return logits of shape \[2, 5\], but returned \[2\]"):
        Sampler(logits_filter=lambda logits: logits[:, 0])(torch.zeros(2, 5))


@pytest.mark.parametrize("temperature", [-1, float("nan"), float("inf"), "hot", None, True])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a number of at least 0"):
        Sampler(temperature)


def test_a_bad_seed_is_refused():
    with pytest.raises(ValueError, match=r"`seed` must be a whole number from .* or None, but is 1\.5"):
        Sampler(seed=1.5)


def test_output_is_a_normal_tensor_without_a_view_of_the_prompt(stand_in):
    new = run(stand_in, [1, 2], 5)
    assert new.untyped_storage().nbytes() == 5 * new.element_size()
    stand_in(new).sum().backward()  # inference tensors would raise here
    assert stand_in.embed.weight.grad.abs().sum() > 0


def test_mixed_modes_are_restored_also_after_errors(stand_in):
    stand_in.train()
    stand_in.dropout.eval()
    seen = []

    def fail():
        with evaluating(stand_in):
            seen.extend([stand_in.training, stand_in.dropout.training])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert seen == [False, False]
    assert stand_in.training
    assert not stand_in.dropout.training


def test_the_last_new_token_needs_no_cache_position(stand_in):
    rooms = []
    real = stand_in.init_state
    stand_in.init_state = lambda batch, length, **how: rooms.append(length) or real(batch, length, **how)
    run(stand_in, [1, 2, 3], 4)
    assert rooms == [6]


def test_context_is_given_once_to_a_state_and_to_every_forward_without(stand_in):
    context = torch.zeros(1, 2, 8)
    side = {"context": context, "context_mask": None}
    run(stand_in, [1, 2], 3, kwargs=side)
    assert [seen is context for seen in stand_in.contexts] == [True, False, False]
    run(stand_in, [1, 2], 3, kwargs=side, cached=False)
    assert [seen is context for seen in stand_in.contexts[3:]] == [True, True, True]


def test_prompts_are_not_modified(stand_in):
    prompts = Prompts(torch.tensor([[1, 2]]), None, True)
    decode(stand_in, prompts, StoppingCriteria(3), GREEDY)
    assert prompts.ids.tolist() == [[1, 2]]

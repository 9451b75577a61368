"""The wrapper: targets of its loss, arguments of `generate` and its refusals."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from flagformer.wrappers.autoregressive import AutoregressiveWrapper


@pytest.fixture
def wrapper(stand_in):
    return AutoregressiveWrapper(stand_in.eval())


def nats(model, row: list[int], counted: set[int]) -> list[float]:
    """Negative log likelihood of row[i] given row[:i], for every scored i."""
    return [-model(torch.tensor([row[:i]]))[0, -1].log_softmax(-1)[row[i]].item() for i in sorted(counted)]


def test_loss_is_the_mean_nats_of_next_tokens(wrapper):
    rows = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
    wanted = [value for row in rows for value in nats(wrapper.net, row, {1, 2, 3, 4})]
    assert wrapper(torch.tensor(rows)).item() == pytest.approx(sum(wanted) / 8, rel=1e-5)  # float32 sums


def test_loss_leaves_ignored_targets_out(wrapper):
    wanted = nats(wrapper.net, [3, 1, 4, 1, 5], {1, 2, 3, 4}) + nats(wrapper.net, [9, 2], {1})
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, -100, -100, -100]])
    assert wrapper(ids).item() == pytest.approx(sum(wanted) / 5, rel=1e-5)


def test_another_ignore_index_can_be_an_id(stand_in):
    wrapper = AutoregressiveWrapper(stand_in.eval(), ignore_index=0)
    wanted = nats(stand_in, [9, 2], {1})
    assert wrapper(torch.tensor([[9, 2, 0, 0]])).item() == pytest.approx(sum(wanted), rel=1e-5)


def test_logits_are_returned_with_the_loss_on_request(wrapper):
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    loss, outputs = wrapper(ids, return_outputs=True)
    logits = outputs.logits
    assert logits.shape == (1, 4, 11)
    assert torch.equal(wrapper.net.to_logits(outputs.embeddings), logits)
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item(), rel=1e-6
    )


def test_loss_without_a_target_is_nan(wrapper):
    assert math.isnan(wrapper(torch.tensor([[3, -100]])).item())


@pytest.mark.parametrize("shape", [(5,), (2, 1), (1, 2, 3)])
def test_loss_refuses_other_shapes(wrapper, shape):
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B, T\] with T at least 2"):
        wrapper(torch.zeros(shape, dtype=torch.long))


def test_generate_shows_its_signature_and_is_documented():
    parameters = inspect.signature(AutoregressiveWrapper.generate).parameters
    assert list(parameters) == [
        "self",
        "prompts",
        "seq_len",
        "eos_token",
        "temperature",
        "prompt_lens",
        "filter_logits_fn",
        "filter_kwargs",
        "restrict_to_max_seq_len",
        "cache_kv",
        "seed",
        "context",
        "context_mask",
        "prefix_attn_len",
        "embed_ids",
        "amateur_model",
        "contrastive_decode_kwargs",
        "prepend_embeds",
        "prepend_mask",
        "condition",
        "stop",
    ]
    undocumented = [
        name for name in list(parameters)[1:] if f"{name}:" not in AutoregressiveWrapper.generate.__doc__
    ]
    assert not undocumented


@pytest.mark.parametrize(
    ("prompts", "shape"),
    [([[1, 2], [3]], (2, 4)), ([1, 2], (4,)), (torch.tensor([1, 2]), (4,)), (torch.tensor([[1, 2]]), (1, 4))],
)
def test_generate_returns_new_tokens_only(wrapper, prompts, shape):
    new = wrapper.generate(prompts, 4, seed=0)
    assert new.shape == shape
    assert new.dtype == torch.long


def test_default_samples_from_the_most_likely_tenth(wrapper):
    # A tenth of 11 tokens, rounded up, is 2: k is at least 1 for every vocabulary.
    logits = wrapper.net(torch.tensor([[3]]))[0, -1]
    drawn = {wrapper.generate([3], 1, seed=seed).item() for seed in range(40)}
    assert drawn == set(logits.topk(2).indices.tolist())


def test_a_named_filter_equals_the_function_and_gets_its_settings(wrapper):
    named = wrapper.generate([3, 1], 9, filter_logits_fn="top_p", filter_kwargs={"thres": 0.5}, seed=0)
    own = wrapper.generate([3, 1], 9, filter_logits_fn=lambda logits: top_half(logits), seed=0)
    assert torch.equal(named, own)
    greedy = wrapper.generate([3, 1], 9, temperature=0)
    assert torch.equal(greedy, wrapper.generate([3, 1], 9, filter_kwargs={"k": 1}))


def top_half(logits: Tensor) -> Tensor:
    ordered, indices = logits.sort(descending=True)
    probs = ordered.softmax(-1)
    dropped = (probs.cumsum(-1) - probs) >= 0.5
    return logits.scatter(-1, indices, ordered.masked_fill(dropped, -math.inf))


@pytest.mark.parametrize("training", [True, False])
def test_generate_runs_in_eval_mode_and_restores_the_mode(stand_in, training):
    wrapper = AutoregressiveWrapper(stand_in.train(training))
    assert wrapper.training == training  # wrapping changes nothing either
    seen = []
    stand_in.dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    wrapper.generate([1, 2], 3)
    assert seen
    assert not any(seen)
    assert [module.training for module in wrapper.modules()] == [training] * len(list(wrapper.modules()))


def test_generate_records_no_gradient(wrapper):
    flags = []
    wrapper.net.dropout.register_forward_hook(lambda _, __, out: flags.append(out.requires_grad))
    wrapper.generate([1, 2], 2)
    assert flags == [False, False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"seq_len": 0}, "`seq_len` must be a whole number of at least 1, but is 0"),
        ({"seq_len": 2.0}, "`seq_len` must be a whole number of at least 1, but is 2.0"),
        ({"eos_token": 11}, "`eos_token` must be an id from 0 to 10 or None, but is 11"),
        ({"eos_token": -1}, "`eos_token` must be an id from 0 to 10 or None, but is -1"),
        ({"temperature": -0.5}, "`temperature` must be a number of at least 0, but is -0.5"),
        ({"filter_logits_fn": "min-p"}, "did you mean 'min_p'?"),
        ({"filter_kwargs": {"thres": 0.9}}, "settings of top_k (`frac_num_tokens`, `k`), but holds `thres`"),
        ({"filter_kwargs": {"k": 0}}, "`k` must be a whole number of at least 1, but is 0"),
        ({"prompts": [[1], []]}, "`prompts[1]` must hold at least one token"),
        ({"prompts": [1, 11]}, "`prompts` must hold ids from 0 to 10, but holds 11"),
        ({"seed": "lucky"}, "`seed` must be a whole number from -2**63 to 2**64 - 1 or None, but is 'lucky'"),
    ],
)
def test_invalid_requests_are_named(wrapper, request_, says):
    with pytest.raises(ValueError) as error:
        wrapper.generate(**{"prompts": [1, 2], "seq_len": 3, **request_})
    assert says in str(error.value)


def test_absolute_positions_refuse_rows_beyond_max_seq_len(wrapper):
    wrapper.net.absolute_positions = True
    for cache_kv in (True, False):
        # 12 tokens are inputs: 4 of the prompt and 8 of 9 new ones.
        assert wrapper.generate([1, 2, 3, 4], 9, cache_kv=cache_kv).shape == (9,)
        with pytest.raises(ValueError) as error:
            wrapper.generate([1, 2, 3, 4], 10, cache_kv=cache_kv)
        assert "`seq_len` must be at most 9 after 4 prompt tokens, but is 10" in str(error.value)
        assert "max_seq_len 12" in str(error.value)
        with pytest.raises(ValueError, match="no position left after 13 prompt tokens"):
            wrapper.generate([1] * 13, 1, cache_kv=cache_kv)


@pytest.fixture
def windows(stand_in):
    """The windows of all requested decode states."""
    seen = []
    real = stand_in.init_state

    def note(batch, length, window=None, seq_start_pos=None):
        seen.append(window)
        return real(batch, length, window, seq_start_pos)

    stand_in.init_state = note
    return seen


def test_relative_positions_continue_with_or_without_the_window(wrapper, windows):
    wrapper.generate([1, 2, 3, 4], 9)
    wrapper.generate([1, 2, 3, 4], 10)
    wrapper.generate([1, 2, 3, 4], 10, restrict_to_max_seq_len=False)
    assert windows == [None, 12, None]


def test_a_model_without_a_length_has_no_window(wrapper, windows):
    wrapper.net.max_seq_len = 0
    wrapper.generate([1, 2, 3], 6)
    assert windows == [None]


def test_acausal_nets_are_refused(stand_in):
    stand_in.attn_layers.causal = False
    with pytest.raises(ValueError, match="`net` must be causal"):
        AutoregressiveWrapper(stand_in)
    with pytest.raises(ValueError, match="`net` must be a TransformerWrapper, but is Linear"):
        AutoregressiveWrapper(torch.nn.Linear(2, 2))


def test_a_padding_outside_the_vocabulary_is_refused(stand_in):
    with pytest.raises(ValueError, match="`pad_value` must be an id from 0 to 10, but is 11"):
        AutoregressiveWrapper(stand_in, pad_value=11)


def test_a_model_without_decode_state_warns_about_full_forwards(wrapper):
    cached = wrapper.generate([1, 2, 3], 6, temperature=0)
    wrapper.net.can_cache = False
    with pytest.warns(UserWarning, match="`cache_kv` has no effect") as caught:
        assert torch.equal(cached, wrapper.generate([1, 2, 3], 6, temperature=0))
    assert caught[0].filename == __file__
    wrapper.generate([1], 2, cache_kv=False)


@pytest.mark.parametrize("ids", [[[3, 1, 11]], [[3, 11, 1]], [[-1, 3, 1]]])
def test_loss_refuses_ids_out_of_range_at_any_position(wrapper, ids):
    with pytest.raises(ValueError, match=r"`x` must hold ids from 0 to 10 .*but holds (11|-1)"):
        wrapper(torch.tensor(ids))

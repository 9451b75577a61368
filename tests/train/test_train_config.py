"""Blocks of a file: closed schemas, checked, and identified by their content."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_trial import tiny

from flagformer.lab.train.config import EvaluateConfig, TrainConfig, Trial
from flagformer.lab.train.schedule import learning_rate


@pytest.mark.parametrize(
    ("kind", "block", "message"),
    [
        (TrainConfig, {"stepz": 3}, "stepz"),
        (TrainConfig, {"steps": 0}, "greater than or equal to 1"),
        (TrainConfig, {"lr": float("nan")}, "finite"),
        (
            TrainConfig,
            {"batch_size": 8, "accumulate": 3},
            "`accumulate` must divide `batch_size` = 8, but is 3",
        ),
        (TrainConfig, {"steps": 10, "warmup": 11}, "`warmup` must be at most `steps` = 10, but is 11"),
        (TrainConfig, {"betas": (0.9, 1.0)}, "`betas` must both be at least 0 and below 1"),
        (TrainConfig, {"precision": "fp16"}, "'fp32' or 'bf16'"),
        (EvaluateConfig, {"seq_lens": [64, 1]}, "at least 2, but holds 1"),
        (EvaluateConfig, {"seq_lens": [64, 64]}, "each length once"),
        (EvaluateConfig, {"split": "dev"}, "'train', 'validation' or 'test'"),
    ],
)
def test_mistakes_are_refused(kind, block, message):
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(block)


def test_an_id_is_a_hash_of_the_content():
    assert tiny().id == tiny().id
    assert Trial.model_validate_json(tiny().model_dump_json()).id == tiny().id
    others = [
        tiny(seed=6),
        tiny(flags={"dim": 32}),
        tiny(train={"lr": 1e-3}),
        tiny(evaluate={"seq_lens": [12]}),
        tiny(data={"source": "copy", "symbols": 8, "seq_len": 14}),
    ]
    assert len({trial.id for trial in [tiny(), *others]}) == 6


def test_the_order_of_flags_has_no_effect():
    flags = {"dim": 16, "heads": 2, "depth": 1}
    one, two = (Trial(flags=dict(sorted(flags.items(), reverse=order))) for order in (False, True))
    assert one.id == two.id


def test_data_sets_vocabulary_and_positions():
    flags = tiny().model_flags
    assert flags["model"] == "decoder"
    assert flags["num_tokens"] == 9
    assert flags["max_seq_len"] == 24
    assert Trial(flags={"max_seq_len": 99}).model_flags["max_seq_len"] == 99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"flags": {"model": "encoder"}, "objective": {"name": "next_token"}},
            "`model` must be one of decoder, prefix_decoder, .* but is 'encoder': it attends",
        ),
        ({"flags": {"num_tokens": 10}}, "`num_tokens` must be 9, the vocabulary of the data, but is 10"),
        (
            {"flags": {"max_seq_len": 20}},
            "`max_seq_len` must be at least 24, the length of the longest row.* but is 20",
        ),
        ({"flags": {"dimm": 20}}, "`dimm` is not a flag"),
        ({"data": {"source": "file", "path": "/nowhere/text"}}, "/nowhere/text is not there"),
        (
            {"data": {"source": "associative_recall", "seq_len": 64}},
            "at least 64 for associative_recall .* is 12",
        ),
    ],
)
def test_check_finds_configurations_that_cannot_run(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes).check()


@given(
    steps=st.integers(1, 300),
    share=st.floats(0, 1),
    decay=st.sampled_from(["cosine", "linear", "constant"]),
    lr_end=st.floats(0, 1),
)
def test_learning_rate_warms_up_then_decays_to_its_end(steps, share, decay, lr_end):
    warmup = int(share * steps)
    config = TrainConfig(steps=steps, warmup=warmup, decay=decay, lr=0.5, lr_end=lr_end)
    rates = [learning_rate(step, config) for step in range(1, steps + 1)]
    assert all(math.isclose(rate, 0.5 * (step + 1) / warmup) for step, rate in enumerate(rates[:warmup]))
    way_down = rates[max(0, warmup - 1) :]
    assert all(after <= before + 1e-12 for before, after in pairwise(way_down))
    if steps > warmup:
        assert math.isclose(rates[-1], 0.5 if decay == "constant" else 0.5 * lr_end, abs_tol=1e-12)
    assert all(0 <= rate <= 0.5 for rate in rates)

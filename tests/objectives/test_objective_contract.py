"""Every objective with every kind of model that it trains: batches, misfits, resuming, audits, FLOPs."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from objective_runs import CASES, TRAIN, trained, trial_of

from flagformer.lab.objectives import KINDS, Objective
from flagformer.lab.objectives.catalogue import KnownObjective, default_objective
from flagformer.lab.study.audits import STAMPS, audit_results
from flagformer.lab.study.costs import cost
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer

OBJECTIVES: list[type[Objective]] = list(get_args(get_args(KnownObjective)[0]))
IDS = ["-".join(case) for case in CASES]


def name_of(objective: type[Objective]) -> str:
    return objective().model_dump()["name"]


def weights(directory: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "model").iterdir()}


def test_each_pair_has_a_case_or_a_reason() -> None:
    assert set(CASES) == {(kind, name_of(objective)) for objective in OBJECTIVES for kind in objective.trains}
    for objective in OBJECTIVES:
        assert not set(objective.trains) & set(objective.refusals)
        assert set(objective.trains) | set(objective.refusals) == set(KINDS)
        assert all(objective.refusals.values())
        assert objective.summary.endswith(".")
    assert {kind for kind, _ in CASES} == set(KINDS)


@pytest.mark.parametrize(("kind", "name"), CASES, ids=IDS)
def test_batches_are_determined_by_their_arguments(kind: str, name: str) -> None:
    trial = trial_of(kind, name)
    objective, source = trial.trained_by, trial.source
    before = torch.get_rng_state()
    batch = objective.batch(source, "train", 5, 1, 4, source.seq_len)
    again = objective.batch(source, "train", 5, 1, 4, source.seq_len)
    assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))
    assert torch.equal(torch.get_rng_state(), before), "the global generator must not be used"
    for other in (("train", 6, 1), ("train", 5, 2), ("test", 5, 1)):
        different = objective.batch(source, *other, 4, source.seq_len)
        assert not all(torch.equal(one, two) for one, two in zip(batch, different)), other
    example = objective.example(source, 4, source.seq_len)
    assert [(x.shape, x.dtype) for x in example] == [(x.shape, x.dtype) for x in batch[:-1]]
    assert all(len(part) == 4 for part in batch)
    model = trained(kind, name)[2]
    with torch.no_grad():
        logits = objective.ask(model, batch[:-1], None, losses=False).logits
    losses = objective.losses(logits, batch[-1])
    assert losses.dtype == torch.float32
    assert losses.shape == objective.counted(batch[-1]).shape
    assert objective.example_targets(logits).shape[0] == 4


@pytest.mark.parametrize(("kind", "name"), CASES, ids=IDS)
def test_a_stopped_run_resumes_bit_equal(kind: str, name: str, tmp_path: Any) -> None:
    trial = trial_of(kind, name, checkpoint_every=2)
    with pytest.raises(Killed):
        run_trial(trial, tmp_path / "stopped", killer(3))
    first = run_trial(trial, tmp_path / "stopped")
    second = run_trial(trial, tmp_path / "whole")
    assert first["status"] == "finished"
    assert first["evaluation"] == second["evaluation"]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.parametrize(("kind", "name"), CASES, ids=IDS)
def test_a_saved_model_gives_the_measured_loss(kind: str, name: str) -> None:
    """The mean loss of the result, again from the saved model and the batches."""
    trial, result, model = trained(kind, name)
    objective, total, count = trial.trained_by, 0.0, 0
    for step in range(2):
        *inputs, targets = objective.batch(trial.source, "test", step, 0, 4, trial.source.seq_len)
        with torch.no_grad():
            logits = objective.ask(model, tuple(inputs), None, losses=False).logits
        total += objective.losses(logits, targets).double().sum().item()
        count += int(objective.counted(targets).sum())
    [entry] = result["evaluation"]
    assert entry["nats"] == pytest.approx(total / count, rel=1e-12)
    assert entry["tokens"] == count
    assert model.flags["model"] == kind


@pytest.mark.parametrize("kind", ["encoder", "classifier", "xtransformer", "memformer", "vit"])
def test_audits_of_a_study_are_valid(kind: str) -> None:
    name = next(name for one, name in CASES if one == kind)
    trial, _, model = trained(kind, name)
    found = audit_results(model, trial)
    assert set(found["stamps"]) == set(STAMPS)
    assert "failed" not in found["stamps"].values(), found["failures"]
    assert found["stamps"]["batch-independent"] == "passed"
    causal = trial.trained_by.requires_causal(trial.source)
    assert found["stamps"]["causal"] == ("passed" if causal else "not applicable")
    assert ("decode_tokens_per_second" in found) == (kind in ("xtransformer", "memformer"))


@pytest.mark.parametrize(("kind", "name"), CASES, ids=IDS)
def test_costs_are_counted(kind: str, name: str) -> None:
    trial = trial_of(kind, name)
    found = cost(trial)
    assert found.params == sum(parameter.numel() for parameter in trained(kind, name)[2].parameters())
    assert found.active <= found.params
    assert found.flops_per_token > 0
    assert found.saved_bytes > 0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_other_kinds_are_refused_with_the_reason(objective: type[Objective]) -> None:
    for kind, reason in objective.refusals.items():
        flags, data, _ = next(case for (one, _), case in CASES.items() if one == kind)
        content = {"flags": {"model": kind, **flags}, "data": data, "objective": {"name": name_of(objective)}}
        with pytest.raises(ValueError, match=r"`model` must be .* for `objective: ") as caught:
            Trial.model_validate({**content, "train": TRAIN}).check()
        assert str(caught.value).endswith(reason)


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("encoder", {"data": {"source": "digits"}, "objective": {"name": "masked_lm"}}, "rows are images"),
        ("classifier", {"data": {"source": "copy"}}, "its rows have no class"),
        ("xtransformer", {"data": {"source": "parity"}, "objective": {"name": "sequence_to_sequence"}},
         "pairs"),
        ("continuous", {"data": {"source": "copy"}, "objective": {"name": "regression"}}, "not vectors"),
        ("encoder", {"train": {**TRAIN, "segment": 4}}, "`segment` must be left out for `objective"),
        ("routing_lm", {"objective": {"name": "next_token"}}, "without `causal: true`"),
        ("classifier", {"data": {"source": "parity", "seq_len": 2}}, "`seq_len` must be longer"),
    ],
)  # fmt: skip
def test_data_and_settings_that_do_not_fit_are_refused(kind: str, changes: Any, text: str) -> None:
    if changes.get("data") == {"source": "digits"}:
        pytest.importorskip("sklearn")
    name = next(name for one, name in CASES if one == kind and "causal" not in CASES[one, name][0])
    content = {**trial_of(kind, name).model_dump(), **changes}
    with pytest.raises(ValueError, match=text):
        Trial.model_validate(content).check()


@pytest.mark.parametrize(
    ("kind", "flags", "text"),
    [
        ("encoder", {"num_tokens": 256}, "`num_tokens` must be 257, the vocabulary of the data and the mask"),
        ("xtransformer", {"dec_num_tokens": 9}, "`dec_num_tokens` must be 10"),
        ("xtransformer", {"dec_max_seq_len": 4}, "`dec_max_seq_len` must be at least 6, the length"),
        ("classifier", {"num_classes": 3}, "`num_classes` must be 2, the number of classes"),
        ("continuous", {"dim_in": 3}, "`dim_in` must be 2, the width"),
        ("continuous", {"causal": False}, "its targets are the next inputs"),
        ("memformer", {"encoder_only": True}, "it has no decoder"),
    ],
)
def test_flags_against_the_data_are_refused(kind: str, flags: dict[str, Any], text: str) -> None:
    name = next(name for one, name in CASES if one == kind)
    trial = trial_of(kind, name)
    content = {**trial.model_dump(), "flags": {**trial.flags, **flags}}
    with pytest.raises(ValueError, match=text):
        Trial.model_validate(content).check()


def test_defaults_follow_the_model_and_the_data() -> None:
    for (kind, name), (flags, _, given) in CASES.items():
        if given is None:
            found = default_objective(trial_of(kind, name).source, {"model": kind, **flags})
            assert found.model_dump()["name"] == name

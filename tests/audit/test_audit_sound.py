"""Models without a fault pass every supported check and are left unchanged."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from audit_models import NUM_TOKENS, Bigram, TinyLM
from faulty_models import RemembersTheLastInput, StatisticInTraining
from torch import Tensor, nn

from flagformer.audit import audit
from flagformer.audit.checks.every import NAMES


def test_a_correct_model_passes_every_check() -> None:
    report = audit(TinyLM())
    assert [(r.check, r.status) for r in report] == [(name, "passed") for name in NAMES], str(report)
    report.raise_if_failed()


def test_a_bare_module_passes_what_it_supports() -> None:
    report = audit(Bigram())
    assert report.passed
    skipped = {r.check for r in report if r.status == "not applicable"}
    assert skipped == {"right_padding", "left_padding", "packing", "cache"}
    assert "takes no `mask`" in report["right_padding"].words


@pytest.mark.parametrize("give_num_tokens", [True, False])
def test_a_plain_function_can_be_audited(give_num_tokens: bool) -> None:
    net = Bigram()
    report = audit(lambda ids: net(ids), num_tokens=NUM_TOKENS if give_num_tokens else None)
    assert report.passed, str(report)
    assert "no parameters" in report["gradients"].words
    assert report["future_leak"].passed


def test_a_bound_method_audits_its_module() -> None:
    net = TinyLM()
    report = audit(net.forward, checks=["gradients", "determinism"])
    assert report.passed, str(report)
    assert report["determinism"].passed, "eval mode: dropout would fail the checks"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, None),
        lambda logits: {"logits": logits},
        lambda logits: type("O", (), {"logits": logits}),
    ],
    ids=["tuple", "dict", "attribute"],
)
def test_logits_are_found_in_an_output(wrap: Callable[[Tensor], object]) -> None:
    net = Bigram()
    assert audit(lambda ids: wrap(net(ids))).passed


class GateAtZero(TinyLM):
    """ReZero: at the first step only the gate gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inside = nn.Parameter(torch.zeros(())), nn.Linear(24, 24)

    def between(self, x: Tensor) -> Tensor:
        return x + self.gate * self.inside(x)


def test_parameters_after_a_zero_initialised_gate_count_as_trained() -> None:
    assert audit(GateAtZero(), checks=["gradients"]).passed


class SeesAll(TinyLM):
    causal = False

    def allowed(self, allowed: Tensor) -> Tensor:
        past = torch.ones_like(allowed)
        return past & allowed.diagonal(dim1=1, dim2=2)[:, None, :]


def test_a_bidirectional_model_skips_the_future_leak_check() -> None:
    report = audit(SeesAll(), checks=["future_leak", "length", "batch", "determinism"])
    assert report.passed, str(report)
    for check in ("future_leak", "length"):
        assert report[check].status == "not applicable"
        assert "not causal" in report[check].words
    assert audit(SeesAll(), causal=True)["future_leak"].failed


class RefusesMasks(Bigram):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise ValueError("`mask` must be None for bigrams")
        return super().forward(ids)


def test_an_explicit_refusal_is_not_applicable() -> None:
    result = audit(RefusesMasks())["right_padding"]
    assert result.status == "not applicable"
    assert "must be None for bigrams" in result.words


def snapshot(net: nn.Module) -> list[object]:
    """All state that an audit could change, each tensor with its identity and its bits."""
    tensors = [*net.parameters(), *net.buffers()]
    grads = [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    modes = [part.training for part in net.modules()]
    states = [torch.get_rng_state(), random.getstate()]
    return [*[(id(t), t.detach().clone()) for t in tensors], *grads, modes, *states]


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("model", [TinyLM, GateAtZero, StatisticInTraining, RemembersTheLastInput])
@pytest.mark.parametrize("breaks", [False, True])
def test_no_side_effects_remain(
    model: type[nn.Module], breaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model().train()
    net.layers[0].eval()
    net(torch.randint(NUM_TOKENS, (2, 9))).sum().backward()
    net.places.weight.grad = None
    if breaks:
        monkeypatch.setattr("flagformer.audit.run.AS_IT_IS", (None,))  # the audit itself fails halfway
    before = snapshot(net)
    if breaks:
        with pytest.raises(AttributeError):
            audit(net)
    else:
        audit(net)
    assert same(before, snapshot(net))


def test_gradients_are_checked_even_under_no_grad() -> None:
    with torch.no_grad():
        assert audit(TinyLM(), checks=["gradients", "finite"]).passed


def test_fast_matrix_products_do_not_affect_the_comparison() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        result = audit(TinyLM(), checks=["cache"])["cache"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert result.deviation < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_have_their_own_tolerance(dtype: torch.dtype) -> None:
    net = Bigram().to(dtype)
    report = audit(net)
    assert report.passed, str(report)
    tolerance = min(100 * torch.finfo(dtype).eps, 0.1)
    assert report["length"].tolerance == tolerance


def test_ambient_autocast_does_not_affect_the_comparison() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = audit(TinyLM(), checks=["cache"])["cache"]
    assert result.passed
    assert result.deviation < 1e-5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": 3}, "`model` must be a callable"),
        ({"seq_len": 4}, "`seq_len` must be at least 8"),
        ({"seq_len": 41}, "longest input, 40"),
        ({"checks": ["leak"]}, "`checks` must be names among sensitivity, determinism"),
        ({"num_tokens": 1}, "`num_tokens` must be at least 2"),
        ({"model": lambda ids: ids.float().mean()}, r"returned torch.float32 of shape \[\]"),
        ({"model": lambda ids: ids.no_such_name}, "it raised AttributeError"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        audit(**{"model": TinyLM(), **arguments})

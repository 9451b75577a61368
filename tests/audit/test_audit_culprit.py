"""The culprit is the first flag whose removal makes the check pass."""

from __future__ import annotations

from typing import Any

from audit_models import TinyLM
from faulty_models import GatedLeak, MaskOffByOne
from torch import Tensor, nn

import flagformer
from flagformer import Finding, FlagError, Spec
from flagformer.audit import audit

SMALL = {"num_tokens": 17, "max_seq_len": 40, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}


def build(flags: dict[str, Any]) -> nn.Module:
    """`peek` leaks, `peek_from` tunes it and needs it; `depth` is required; `wide` is harmless."""
    if "depth" not in flags:
        raise FlagError([Finding("depth", "`depth` is required")])
    if "peek_from" in flags and "peek" not in flags:
        raise FlagError([Finding("peek_from", "`peek_from` has no effect here")])
    model = (MaskOffByOne if "peek" in flags else TinyLM)()
    model.flags = flags
    return model


def test_a_flag_is_named_with_the_flags_that_depend_on_it() -> None:
    model = build({"depth": 2, "peek": "ahead", "peek_from": 5, "wide": True})
    result = audit(model, checks=["future_leak"], rebuild=build)["future_leak"]
    assert result.flag == "peek='ahead'"
    assert "without peek='ahead' (and peek_from, which need it)" in result.flag_words


def test_the_text_of_the_report_names_the_flag() -> None:
    report = audit(build({"depth": 2, "peek": True}), checks=["future_leak"], rebuild=build)
    assert "likely at fault: peek=True" in " ".join(str(report).split())


def test_a_fault_without_a_culprit_names_no_flag() -> None:
    model = MaskOffByOne()
    model.flags = {"depth": 2, "wide": True}
    result = audit(model, checks=["future_leak"], rebuild=lambda flags: MaskOffByOne())["future_leak"]
    assert result.flag is None
    assert "without each one of the 2 flags" in result.flag_words


def test_a_fault_of_the_weights_names_no_flag() -> None:
    """The model was changed after it was built: a new one built from its flags passes."""
    model = build({"depth": 2, "wide": True})
    model.tokens.weight.data[:, 0] = float("nan")
    result = audit(model, checks=["finite"], rebuild=build)["finite"]
    assert result.failed
    assert result.flag is None
    assert "the fault is in the weights" in result.flag_words


def test_a_model_without_flags_is_not_rebuilt() -> None:
    result = audit(GatedLeak(), checks=["future_leak"])["future_leak"]
    assert result.failed
    assert (result.flag, result.flag_words) == (None, "")


class MeanOfTheRow(nn.Module):
    """A norm that subtracts the mean over the row, which leaks the future."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=1, keepdim=True)


def test_a_custom_component_is_named_in_a_model_of_the_library() -> None:
    model = flagformer.build({**SMALL, "rotary_pos_emb": True, "norm": Spec(MeanOfTheRow), "ff_glu": True})
    result = audit(model, checks=["future_leak"])["future_leak"]
    assert result.failed
    assert result.flag == "norm=MeanOfTheRow()"

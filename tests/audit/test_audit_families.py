"""The audit of this library's models, of x-transformers and of Hugging Face models."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flagformer
from flagformer.audit import audit
from flagformer.audit.checks.every import NAMES
from flagformer.flow import DecodeState, Layout

SMALL = {"num_tokens": 17, "max_seq_len": 40, "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}

SHAPES = {"length", "right_padding", "left_padding", "cache"}


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"rotary_pos_emb": True, "ff_glu": True, "use_rmsnorm": True, "attn_kv_heads": 2},
        {"alibi_pos_bias": True, "attn_num_mem_kv": 2},
        {"rel_pos_bias": True, "attn_dropout": 0.1, "layer_dropout": 0.2},
        {"dynamic_pos_bias": True, "attn_qk_norm": True},
        {"use_layerscale": True, "layerscale_init_value": 1e-5, "pre_norm": False},
        {"cross_attend": True, "rotary_pos_emb": True},
    ],
    ids=lambda flags: "-".join(flags) or "plain",
)
def test_decoders_pass_every_check(flags: dict[str, Any]) -> None:
    report = audit(flagformer.build({**SMALL, **flags}))
    assert [(r.check, r.status) for r in report] == [(name, "passed") for name in NAMES], str(report)


@pytest.mark.parametrize(
    ("kind", "skipped"),
    [("encoder", {"future_leak", "length", "cache"}), ("prefix_decoder", set())],
)
def test_other_kinds_pass_the_checks_they_support(kind: str, skipped: set[str]) -> None:
    report = audit(flagformer.build({**SMALL, "model": kind, "rotary_pos_emb": True}))
    assert report.passed, str(report)
    assert {r.check for r in report if r.status == "not applicable"} == skipped


def test_a_leak_after_the_prefix_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = flagformer.build({**SMALL, "model": "prefix_decoder"})
    rule = type(model.attn_layers).time_rule
    longer = lambda layers, prefix: rule(layers, None if prefix is None else prefix + 1)  # noqa: E731
    monkeypatch.setattr(type(model.attn_layers), "time_rule", longer)
    result = audit(model, checks=["future_leak"])["future_leak"]
    assert result.failed
    assert result.position == 0
    assert result.flag == "model='prefix_decoder'"
    assert "when token 8 or later" in result.words, "the prefix has 8 of the 32 tokens"


def test_a_cache_with_wrong_positions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def layout(state: DecodeState, start: int, length: int, device: torch.device) -> Layout:
        return Layout.arange(length, device, start + (start > 4))

    monkeypatch.setattr(DecodeState, "layout", layout)
    report = audit(flagformer.build({**SMALL, "rel_pos_bias": True}))
    assert {r.check for r in report.failures} == {"cache"}, str(report)


def x_transformer(**flags: Any) -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **flags)
    return TransformerWrapper(num_tokens=17, max_seq_len=40, attn_layers=layers)


def test_an_x_transformers_model_passes_what_it_supports() -> None:
    report = audit(x_transformer(alibi_pos_bias=True))
    assert report.passed, str(report)
    assert {r.check for r in report if r.status == "not applicable"} == {"packing"}


@pytest.mark.parametrize(
    ("flags", "faults"),
    [
        ({"shift_tokens": 1}, {"left_padding", "cache"}),
        ({"rotary_xpos": True, "attn_num_mem_kv": 4}, SHAPES),
        ({"attn_orthog_projected_values": True}, {"future_leak", *SHAPES}),
    ],
    ids=["shift", "xpos", "projection"],
)  # fmt: skip
def test_known_faults_of_x_transformers_are_found(flags: dict[str, Any], faults: set[str]) -> None:
    """Published behaviour of x-transformers 2.31.10: an audit that misses it would miss ours."""
    report = audit(x_transformer(**flags))
    assert {r.check for r in report.failures} == faults, str(report)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_small_model_is_audited_on_one_thread(threads: int) -> None:
    seen = set()

    def net(ids: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return nn.functional.one_hot(ids, 8).float()

    torch.set_num_threads(threads)
    assert audit(net).passed
    assert seen == {1}
    assert torch.get_num_threads() == threads


def test_audit_is_a_function_and_a_module_and_is_imported_lazily() -> None:
    program = """
import sys, torch, flagformer
assert not any(name.startswith("flagformer.audit") for name in sys.modules)
net = lambda ids: torch.nn.functional.one_hot(ids, 8).float()
assert flagformer.audit(net).passed
import flagformer.audit
assert flagformer.audit(net, num_tokens=8).passed and flagformer.audit.AuditReport
from flagformer import audit
assert audit(net).passed
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_model_with_memory_slots_passes():
    """Its context is its memory, written by the previous segment."""
    sizes = {"num_tokens": 11, "max_seq_len": 40, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
    report = audit(flagformer.build({**sizes, "cross_attend": True, "num_memory_slots": 3}))
    assert report.passed, str(report)

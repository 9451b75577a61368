"""The estimated cost of a study: FLOPs against torch's counter on allocated tensors and formulas, for every
flag."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import flagformer
from flagformer.lab.reference import choices, settings
from flagformer.lab.study.costs import ADAMW, Cost, cost, forward_flops, saved_bytes
from flagformer.lab.study.run import prepare
from flagformer.lab.train.config import EvaluateConfig, TrainConfig, Trial

DIM, DEPTH, HEADS, HEAD, LENGTH, VOCABULARY = 32, 2, 2, 8, 16, 256
PLAIN = {"dim": DIM, "depth": DEPTH, "heads": HEADS, "attn_dim_head": HEAD}
INNER = HEADS * HEAD


def cost_of(flags: dict, **train: object) -> Cost:
    data = {"source": "stdlib", "seq_len": LENGTH}
    block = TrainConfig(steps=8, warmup=2, batch_size=4, **train)  # type: ignore[arg-type]
    return cost(Trial(flags=flags, data=data, train=block, evaluate=EvaluateConfig()))


def attention(key_value_heads: int = HEADS, value: int = HEAD) -> int:
    """Multiply-adds a token: queries, keys and values, scores and weighted sum, output projection."""
    projections = DIM * INNER + DIM * key_value_heads * (HEAD + value) + HEADS * value * DIM
    return projections + LENGTH * HEADS * (HEAD + value)


@pytest.mark.parametrize(
    ("flags", "multiply_adds"),
    [
        ({}, DEPTH * (attention() + 2 * DIM * 4 * DIM)),
        ({"ff_mult": 2}, DEPTH * (attention() + 2 * DIM * 2 * DIM)),
        ({"ff_glu": True}, DEPTH * (attention() + 3 * DIM * 4 * DIM)),
        ({"attn_one_kv_head": True}, DEPTH * (attention(1) + 2 * DIM * 4 * DIM)),
        ({"rotary_pos_emb": True, "use_rmsnorm": True}, DEPTH * (attention() + 2 * DIM * 4 * DIM)),
        ({"tie_embedding": True}, DEPTH * (attention() + 2 * DIM * 4 * DIM)),
        ({"depth": 5}, 5 * (attention() + 2 * DIM * 4 * DIM)),
        ({"attn_value_dim_head": 12}, DEPTH * (attention(value=12) + 2 * DIM * 4 * DIM)),
        ({"attn_value_dim_head": 4}, DEPTH * (attention(value=4) + 2 * DIM * 4 * DIM)),
    ],
)
def test_flops_by_formula(flags: dict, multiply_adds: int) -> None:
    assert cost_of({**PLAIN, **flags}).flops_per_token == 2 * (multiply_adds + DIM * VOCABULARY)


# a language model without a context: studies refuse these
CHOICES = [choice for choice in choices() if not settings(choice).keys() & {"cross_attend", "only_cross"}]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_flops_on_meta_equal_those_of_allocated_tensors(choice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # zeros after the narrower of keys and values, for the fused kernel of CPU: no arithmetic of the model
    monkeypatch.setattr("flagformer.attention.kernels.sdpa._zeros_pay", lambda q, k: False)
    flags = settings(choice)
    with torch.device("meta"):
        counted, _ = forward_flops(flagformer.build(flags).eval(), torch.zeros(1, 12, dtype=torch.long))
    model = flagformer.build(flags).eval()
    real, _ = forward_flops(model, torch.randint(0, flags["num_tokens"], (1, 12)))
    assert counted == real > 0


def test_flops_of_segments_equal_those_of_allocated_tensors() -> None:
    flags = {**PLAIN, "cross_attend": True, "num_memory_slots": 2, "num_tokens": 9, "max_seq_len": 4}
    with torch.device("meta"):
        counted = forward_flops(flagformer.build(flags), torch.zeros(1, 12, dtype=torch.long), 4)
    model = flagformer.build(flags)
    assert counted == forward_flops(model, torch.zeros(1, 12, dtype=torch.long), 4)
    one, _ = forward_flops(model, torch.zeros(1, 4, dtype=torch.long))
    assert counted[0] > 3 * one, "every segment writes its slots too"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_parameters_equal_those_of_the_model() -> None:
    flags = {**PLAIN, "num_tokens": VOCABULARY, "max_seq_len": LENGTH}
    model, found = flagformer.build(flags), cost_of(PLAIN)
    assert found.params == model.num_params()
    assert found.body == model.num_params(embedding=False)
    assert found.active == found.body + 2 * DIM  # a row of the token table and one of the position table
    tied = cost_of({**PLAIN, "tie_embedding": True})
    assert tied.active == tied.params - (LENGTH - 1) * DIM  # a row of the tied table is a part of all of it


def test_active_experts_are_those_of_a_token() -> None:
    moe = {**PLAIN, "ff_moe": True, "moe_num_experts": 6, "moe_top_k": 2}
    most = cost_of({**moe, "moe_top_k": 6})
    found = cost_of(moe)
    assert most.active == most.body + 2 * DIM
    model = flagformer.build({**moe, "num_tokens": 9, "max_seq_len": 9})
    inside = [
        p.numel() for name, p in model.named_parameters() if ".fn.w_in." in name or ".fn.w_out." in name
    ]
    assert most.active - found.active == sum(inside) * 4 // 6


def test_saved_bytes_grow_with_the_micro_batch() -> None:
    whole, halves = cost_of(PLAIN), cost_of(PLAIN, accumulate=2)
    assert whole.saved_bytes > 1.8 * halves.saved_bytes
    assert whole.memory_bytes == ADAMW * 4 * whole.params + whole.saved_bytes
    assert cost_of({**PLAIN, "attn_z_loss_weight": 1e-3}).saved_bytes >= whole.saved_bytes
    assert cost_of({**PLAIN, "depth": 8}).saved_bytes > 3 * whole.saved_bytes
    reversed_ = cost_of({**PLAIN, "depth": 8, "reversible": True})
    assert reversed_.saved_bytes < 0.7 * cost_of({**PLAIN, "depth": 8}).saved_bytes


def test_costs_are_printed_before_training(tiny: Path) -> None:
    costs = prepare(tiny).costs
    assert set(costs) == {"learned", "rotary"}
    assert all(value > 0 for cost in costs.values() for value in dataclasses.astuple(cost))


LONG = {"dim": 32, "depth": 1, "heads": 4, "attn_dim_head": 8, "num_tokens": 16, "max_seq_len": 512}
KEPT: list[dict[str, Any]] = [
    {"rotary_pos_emb": True}, {"alibi_pos_bias": True}, {"rel_pos_bias": True}, {"dynamic_pos_bias": True},
    {"attn_max_attend_past": 32, "rotary_pos_emb": True}, {"attn_num_mem_kv": 2}, {"attn_kv_heads": 2},
    {"n_local_attn_heads": 2, "local_attn_window_size": 32}, {"num_clusters": 4, "window_size": 32},
    {"attn_value_dim_head": 4}, {"attn_dropout": 0.1}, {"attn_talking_heads": True}, {"reversible": True},
    {"checkpoint": "sublayer"},
]  # fmt: skip


@pytest.mark.parametrize("flags", KEPT, ids=lambda flags: "-".join(flags))
def test_saved_bytes_are_estimated_close_to_the_measured_ones(flags: dict[str, Any]) -> None:
    """Within a fifth; only repeated heads of grouped keys and values differ."""
    sizes = {}
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = flagformer.build({**LONG, **flags}).train()
            sizes[device] = saved_bytes(model, torch.zeros(2, 512, dtype=torch.long))
    assert 0.95 < sizes["meta"] / sizes["cpu"] < 1.2


def test_flops_of_heads_that_attend_to_few_keys() -> None:
    """Long rows: a window counts its keys, local heads their blocks, and the dense figure all keys."""

    def flops(**flags: Any) -> tuple[int, int]:
        with torch.device("meta"):
            return forward_flops(flagformer.build({**LONG, **flags}).eval(), torch.zeros(1, 512).long())

    dense, same = flops()
    assert dense == same
    every_key = 2 * 4 * 512 * 512 * 16  # 4 heads, queries, keys, dim of q and v
    window, of_window = flops(attn_max_attend_past=31)
    assert of_window == dense
    assert dense - window == every_key * (512 - 32) // 512
    routed, of_routed = flops(num_clusters=4, window_size=32)
    assert of_routed - routed >= every_key * (512 - 32) // 512 - 2 * 512 * 4 * 4 * 8 * 2
    local, of_local = flops(n_local_attn_heads=4, local_attn_window_size=32)
    assert of_local == dense
    assert every_key * (512 - 4 * 32) // 512 < dense - local < every_key

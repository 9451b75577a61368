"""Mixtures of experts with the weights of tiny sparse blocks of transformers: outputs and gradients in fp64.

Written against transformers 5.24.0, whose experts are stacked in one parameter with gates first (gpt-oss:
gates and values in turns); the library's values come first.
"""

import importlib

import pytest
import torch

import flagformer
from flagformer.flow import Layout, OutputCollector, SideInputs

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

DIM, INNER, EXPERTS, TOP, LENGTH = 16, 12, 8, 3, 9
SIZES = {
    "hidden_size": DIM, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1,
    "vocab_size": 11, "head_dim": 8,
}  # fmt: skip
SWIGLU = {
    "ff_moe": True, "ff_glu": True, "ff_swish": True, "ff_no_bias": True, "moe_num_experts": EXPERTS,
    "moe_top_k": TOP, "ff_inner_dim": INNER,
}  # fmt: skip


def block_of(family, name, config, **values):
    """A sparse block of transformers with random parameters and buffers, in fp64."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    block = getattr(module, name)(getattr(transformers, config)(**SIZES, **values)).double()
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.normal_(std=0.4)
    return block


def feedforward_of(**flags):
    model = flagformer.build(
        {
            "num_tokens": 11, "max_seq_len": 16, "dim": DIM, "heads": 2, "attn_dim_head": 8, "depth": 1,
            **SWIGLU, **flags,
        }
    )  # fmt: skip
    return model.double().attn_layers.sublayers[1].fn


def values_first(gates_first, dim=1):
    """Halves of a dimension in the other order."""
    gates, values = gates_first.chunk(2, dim)
    return torch.cat([values, gates], dim)


def stacked(block, transposed=False):
    """Weights of experts that are stacked in one parameter, [E, 2 F, D] with gates first and [E, D, F]."""
    w_in, w_out = block.experts.gate_up_proj, block.experts.down_proj
    if transposed:
        w_in, w_out = w_in.transpose(1, 2), w_out.transpose(1, 2)
    return {"w_in.weight": values_first(w_in), "w_out.weight": w_out}


def shared(mlp):
    return {
        "shared.w_in.weight": torch.cat([mlp.up_proj.weight, mlp.gate_proj.weight]),
        "shared.w_out.weight": mlp.down_proj.weight,
    }


def mixtral():
    block = block_of(
        "mixtral",
        "MixtralSparseMoeBlock",
        "MixtralConfig",
        intermediate_size=INNER,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
    )
    return block, {}, lambda: {"router.weight": block.gate.weight, **stacked(block)}


def qwen3(normalized):
    block = block_of(
        "qwen3_moe",
        "Qwen3MoeSparseMoeBlock",
        "Qwen3MoeConfig",
        moe_intermediate_size=INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP,
        norm_topk_prob=normalized,
    )
    flags = {"moe_normalize_weights": normalized}
    return block, flags, lambda: {"router.weight": block.gate.weight, **stacked(block)}


def olmoe():
    block = block_of(
        "olmoe",
        "OlmoeSparseMoeBlock",
        "OlmoeConfig",
        intermediate_size=INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP,
    )
    flags = {"moe_normalize_weights": False}  # the default of its configuration
    return block, flags, lambda: {"router.weight": block.gate.weight, **stacked(block)}


def qwen2():
    block = block_of(
        "qwen2_moe",
        "Qwen2MoeSparseMoeBlock",
        "Qwen2MoeConfig",
        moe_intermediate_size=INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP,
        shared_expert_intermediate_size=20,
    )
    flags = {"moe_normalize_weights": False, "moe_num_shared_experts": 1, "moe_shared_inner_dim": 20}

    def weights():
        gate = {"shared_gate.weight": block.shared_expert_gate.weight}
        return {"router.weight": block.gate.weight, **stacked(block), **shared(block.shared_expert), **gate}

    return block, {**flags, "moe_shared_gate": True}, weights


def deepseek_v3(normalized):
    block = block_of(
        "deepseek_v3",
        "DeepseekV3MoE",
        "DeepseekV3Config",
        moe_intermediate_size=INNER,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=TOP,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        norm_topk_prob=normalized,
        routed_scaling_factor=2.5,
    )
    flags = {
        "moe_router": "sigmoid", "moe_num_groups": 4, "moe_top_groups": 2, "moe_weight_scale": 2.5,
        "moe_num_shared_experts": 2, "moe_balance_bias": True, "moe_normalize_weights": normalized,
    }  # fmt: skip

    def weights():
        bias = {"balance_bias.bias": block.gate.e_score_correction_bias}
        return {"router.weight": block.gate.weight, **bias, **stacked(block), **shared(block.shared_experts)}

    return block, flags, weights


def gpt_oss():
    block = block_of(
        "gpt_oss",
        "GptOssMLP",
        "GptOssConfig",
        intermediate_size=INNER,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
        swiglu_limit=0.5,
        swiglu_alpha=1.702,
    )
    flags = {
        "ff_no_bias": False, "moe_router_bias": True, "ff_glu_limit": 0.5, "ff_glu_offset": 1.0,
        "ff_swish": False, "ff_activation": "quick_gelu",
    }  # fmt: skip

    def in_turns(x):
        return torch.cat([x[..., 1::2], x[..., ::2]], dim=-1)

    def weights():
        experts = block.experts
        return {
            "router.weight": block.router.weight,
            "router.bias": block.router.bias,
            "w_in.weight": in_turns(experts.gate_up_proj).transpose(1, 2),
            "w_in.bias": in_turns(experts.gate_up_proj_bias),
            "w_out.weight": experts.down_proj.transpose(1, 2),
            "w_out.bias": experts.down_proj_bias,
        }

    return block, flags, weights


def llama4():
    block = block_of(
        "llama4",
        "Llama4TextMoe",
        "Llama4TextConfig",
        intermediate_size=INNER,
        num_local_experts=EXPERTS,
        num_experts_per_tok=1,
    )
    flags = {"moe_top_k": 1, "moe_router": "sigmoid", "moe_weight_input": True, "moe_num_shared_experts": 1}

    def weights():
        router = {"router.weight": block.router.weight}
        return {**router, **stacked(block, transposed=True), **shared(block.shared_expert)}

    return block, flags, weights


CASES = {
    "mixtral": mixtral,
    "qwen3_moe": lambda: qwen3(False),
    "qwen3_moe, norm_topk_prob": lambda: qwen3(True),
    "olmoe": olmoe,
    "qwen2_moe": qwen2,
    "deepseek_v3": lambda: deepseek_v3(True),
    "deepseek_v3, not normalized": lambda: deepseek_v3(False),
    "gpt_oss": gpt_oss,
    "llama4": llama4,
}
# routers and weights that transformers computes in fp32 whatever the model's dtype
TOLERANCE = 2e-6


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", CASES)
def test_block_of_transformers(name, training):
    torch.manual_seed(0)
    block, flags, weights = CASES[name]()
    forward = feedforward_of(**flags).train(training)
    ours = dict(forward.named_parameters()) | dict(forward.named_buffers())
    theirs = weights()
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for key, value in theirs.items():
            ours[key].copy_(value)
    x = torch.randn(2, LENGTH, DIM, dtype=torch.double)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    side = SideInputs(None, None, None, None, None, OutputCollector(), Layout.arange(LENGTH, x.device))
    found, want = forward(inputs[0], side), block(inputs[1])
    want = (want[0] if isinstance(want, tuple) else want).view_as(x)
    assert close(found, want)
    (found * x).sum().backward()
    (want * x).sum().backward()
    assert close(inputs[0].grad, inputs[1].grad)
    for parameter in block.parameters():
        parameter.data = parameter.grad
    for key, gradient in weights().items():  # in our layout
        assert key.startswith("balance") or close(ours[key].grad, gradient), key


def close(found, want):
    return torch.allclose(found, want.to(found.dtype), rtol=TOLERANCE, atol=TOLERANCE)

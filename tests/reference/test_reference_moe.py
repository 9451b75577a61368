"""Routers, gated and shared experts, weights and losses of mixtures of experts, token by token."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from test_reference_experts import Heard, feedforward_of

import flagformer
from flagformer.feedforward.balance_bias import update_router_bias
from flagformer.lab.train.config import TrainConfig
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.optimizers.groups import make_optimizer
from flagformer.ops.experts import Choice, RouterOutput
from flagformer.ops.grouped_linear import grouped_linear
from flagformer.ops.router_losses import balance_loss, sequence_balance_loss

MANY = {"ff_moe": True, "moe_num_experts": 8}
CASES = {
    "one": {"moe_top_k": 1},
    "three": {"moe_top_k": 3},
    "not normalized": {"moe_top_k": 3, "moe_normalize_weights": False},
    "sigmoid": {"moe_top_k": 3, "moe_router": "sigmoid"},
    "sigmoid, not normalized, scaled": {
        "moe_router": "sigmoid", "moe_normalize_weights": False, "moe_weight_scale": 2.5,
    },
    "groups": {"moe_top_k": 3, "moe_num_groups": 4, "moe_top_groups": 2},
    "groups of one": {"moe_num_groups": 8, "moe_top_groups": 3},
    "groups, sigmoid, bias": {
        "moe_top_k": 3, "moe_num_groups": 4, "moe_top_groups": 2, "moe_router": "sigmoid",
        "moe_balance_bias": True,
    },
    "router bias": {"moe_router_bias": True},
    "gated": {"ff_glu": True, "ff_swish": True},
    "gated, clamped": {
        "ff_glu": True, "ff_activation": "quick_gelu", "ff_glu_limit": 0.2, "ff_glu_offset": 1.0,
    },
    "no bias": {"ff_no_bias": True},
    "inputs": {"moe_top_k": 3, "moe_weight_input": True, "moe_router": "sigmoid"},
    "shared": {"moe_num_shared_experts": 2, "ff_inner_dim": 6},
    "shared, gated": {
        "moe_num_shared_experts": 1, "moe_shared_inner_dim": 6, "moe_shared_gate": True, "ff_glu": True,
        "ff_glu_limit": 0.2, "ff_glu_offset": 0.5,
    },
}  # fmt: skip


def formula(forward, flags, x):
    """The output for one token x [D]."""
    weights = dict(forward.named_parameters()) | dict(forward.named_buffers())
    logits = (weights["router.weight"] @ x + weights.get("router.bias", 0)).detach()
    if flags.get("moe_router") == "sigmoid":
        scores = [1 / (1 + math.exp(-float(one))) for one in logits]
    else:
        scores = logits.softmax(dim=0).tolist()
    chosen = best_experts(flags, scores, weights.get("balance_bias.bias"))
    used = [scores[e] for e in chosen]
    if flags.get("moe_normalize_weights", len(chosen) > 1):
        used = [one / sum(used) for one in used]
    used = [one * flags.get("moe_weight_scale", 1) for one in used]
    out = torch.zeros_like(x)
    for e, weight in zip(chosen, used):
        part = [weights.get(f"{layer}.{name}") for layer in ("w_in", "w_out") for name in ("weight", "bias")]
        part = [None if one is None else one[e] for one in part]
        if flags.get("moe_weight_input"):
            out += mlp(flags, *part, weight * x)
        else:
            out += weight * mlp(flags, *part, x)
    if "moe_num_shared_experts" in flags:
        names = [f"shared.{layer}.{name}" for layer in ("w_in", "w_out") for name in ("weight", "bias")]
        gate = torch.sigmoid(weights["shared_gate.weight"][0] @ x) if "moe_shared_gate" in flags else 1
        out += gate * mlp(flags, *(weights.get(name) for name in names), x)
    return out


def best_experts(flags, scores, bias):
    ranked = [one + (0 if bias is None else float(bias[e])) for e, one in enumerate(scores)]
    groups = flags.get("moe_num_groups", 1)
    size = len(ranked) // groups
    totals = [sum(sorted(ranked[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    allowed = sorted(range(groups), key=lambda g: -totals[g])[: flags.get("moe_top_groups", groups)]
    experts = [e for e in range(len(ranked)) if e // size in allowed]
    return sorted(experts, key=lambda e: -ranked[e])[: flags.get("moe_top_k", 2)]


def mlp(flags, w_in, b_in, w_out, b_out, x):
    hidden = F.linear(x, w_in, b_in)
    if flags.get("ff_glu"):
        value, gate = hidden.chunk(2)
        limit = flags.get("ff_glu_limit", math.inf)
        value, gate = value.clamp(-limit, limit) + flags.get("ff_glu_offset", 0), gate.clamp(max=limit)
        activated = gate * torch.sigmoid(1.702 * gate) if "ff_activation" in flags else None
        activated = F.silu(gate) if "ff_swish" in flags else activated
        hidden = value * (F.gelu(gate) if activated is None else activated)
    else:
        hidden = F.gelu(hidden)
    return F.linear(hidden, w_out, b_out)


def model_of(flags):
    model, forward = feedforward_of(**MANY, **flags)
    if forward.balance_bias is not None:
        forward.balance_bias.bias.copy_(torch.randn(8) * 0.2)
    return model, forward


@pytest.mark.parametrize("name", CASES)
def test_output_of_a_token(name):
    model, forward = model_of(CASES[name])
    heard = Heard(forward)
    model(torch.randint(11, (2, 7)))
    for row in range(2):
        for place in range(7):
            want = formula(forward, CASES[name], heard.x[row, place])
            assert torch.allclose(heard.out[row, place], want, atol=1e-6 if "bias" in name else 1e-12)


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("name", CASES)
def test_all_ways_compute_the_same(name, count):
    _, forward = model_of(CASES[name])
    tokens = torch.randn(count, 16, dtype=torch.double, requires_grad=True)
    ways = [forward._routed, forward._grouped, forward._all_experts]
    found = []
    for way in [*ways, forward._one_token] if count == 1 else ways:
        bias = None if forward.balance_bias is None else forward.balance_bias.bias
        out = way(tokens, RouterOutput.of(forward.router(tokens), forward.choice, bias))
        own = [p for key, p in forward.named_parameters() if not key.startswith("shared")]
        found.append([out, *torch.autograd.grad(out.cos().sum(), [tokens, *own])])
    for one, *others in zip(*found):
        assert all(torch.allclose(one, other, atol=1e-12) for other in others)


def test_perfect_balance_of_two_choices_is_two():
    """As `load_balancing_loss_func` of transformers counts them; 1 where the first choice alone counts."""
    experts = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    routed = RouterOutput(experts, torch.full((4, 2), 0.5), torch.full((4, 4), 0.25))
    assert balance_loss(routed, None, 2) == 2
    assert balance_loss(routed, None) == 1


def test_balance_of_all_choices():
    logits = torch.randn(12, 4, dtype=torch.double)
    valid = torch.arange(12) < 8
    routed = RouterOutput.of(logits, Choice(top_k=3))
    counts = [sum(e in row for row in routed.experts[:8].tolist()) / 8 for e in range(4)]
    want = 4 * sum(count * p for count, p in zip(counts, logits[:8].softmax(-1).mean(0)))
    assert torch.allclose(balance_loss(routed, valid, 3), want)


def test_balance_of_sequences():
    """DeepSeek-V3, equations 17 to 20, for sequences of two rows: the second is padded."""
    logits = torch.randn(10, 4, dtype=torch.double)
    sequences = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 3, 3])  # the third has no tokens
    probabilities = logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
    wanted = []
    for tokens in (probabilities[:5], probabilities[5:8]):
        chosen = [sorted(range(4), key=lambda e: -float(row[e]))[:2] for row in tokens]
        f = [4 / (2 * len(tokens)) * sum(e in row for row in chosen) for e in range(4)]
        wanted.append(sum(f[e] * tokens[:, e].mean() for e in range(4)))
    found = sequence_balance_loss(probabilities, 2, sequences, 3)
    assert torch.allclose(found, (wanted[0] + wanted[1]) / 2)


@pytest.mark.parametrize("how", ["rows", "padded", "packed"])
def test_sequences_have_losses_of_their_own(how):
    """Packed sequences count as those of a batch, and padding not at all."""
    model, _ = feedforward_of(ff_moe=True, moe_sequence_loss_coef=0.5, moe_router="sigmoid")
    ids = torch.randint(11, (2, 4))
    apart = [loss_of(model, ids[:1]), loss_of(model, ids[1:])]
    if how == "rows":
        found = loss_of(model, ids)
    elif how == "padded":
        found = loss_of(model, F.pad(ids, (0, 3)), mask=torch.arange(7).expand(2, 7) < 4)
    else:
        found = loss_of(model, F.pad(ids.view(1, 8), (0, 2)), seq_lens=torch.tensor([[4, 4]]))
    assert torch.allclose(found, sum(apart) / 2, atol=1e-12)


def loss_of(model, ids, **how):
    _, outputs = model.train()(ids, return_losses=True, **how)
    return outputs.losses["moe.sequence_balance"][0]


def test_bias_moves_to_experts_with_few_tokens():
    model, forward = feedforward_of(ff_moe=True, moe_balance_bias=True, moe_balance_bias_rate=0.25)
    bias = forward.balance_bias.bias
    forward.router.weight.data.zero_()
    bias.copy_(torch.tensor([3.0, 2.0, 1.0, 0.0]))  # all tokens go to experts 0 and 1
    ids = torch.randint(11, (2, 7))
    model.eval()(ids)
    update_router_bias(model)
    assert bias.tolist() == [3, 2, 1, 0]  # nothing was counted
    model.train()(ids, mask=torch.arange(7).expand(2, 7) < 5)
    assert forward.balance_bias.pending_stats.tolist() == [10, 10, 0, 0]
    model(ids)
    assert forward.balance_bias.pending_stats.tolist() == [24, 24, 0, 0]
    update_router_bias(model)
    assert bias.tolist() == [2.75, 1.75, 1.25, 0.25]
    update_router_bias(model)
    assert bias.tolist() == [2.75, 1.75, 1.25, 0.25]


def test_bias_changes_the_choice_and_not_the_weights():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.double)
    routed = RouterOutput.of(logits, Choice(2, "sigmoid", normalize=False), torch.tensor([-9.0, 0, 0, 9]))
    assert routed.experts.tolist() == [[3, 1]]
    assert torch.equal(routed.weights, logits.sigmoid()[:, [3, 1]])


def test_bias_stays_in_fp32_and_is_saved():
    model, forward = feedforward_of(ff_moe=True, moe_balance_bias=True)
    assert (
        model.bfloat16().state_dict()["attn_layers.sublayers.1.fn.balance_bias.bias"].dtype == torch.float32
    )
    forward.balance_bias.bias.fill_(2)
    forward.balance_bias.reset_parameters()
    assert not forward.balance_bias.bias.any()


def test_bias_counts_a_recomputed_forward_once():
    model, forward = feedforward_of(ff_moe=True, moe_balance_bias=True, checkpoint="sublayer")
    model.train()(torch.randint(11, (2, 7))).sum().backward()
    assert forward.balance_bias.pending_stats.sum() == 2 * 7 * 2


@pytest.mark.parametrize("ends", [[3, 3, 7], [0, 0, 7], [7, 7, 7]])
def test_grouped_products(ends):
    """Every row times the weight of its group; gradients and their gradients."""
    x = torch.randn(7, 3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 2, 3, dtype=torch.double, requires_grad=True)
    offsets = torch.tensor(ends, dtype=torch.int32)
    found = grouped_linear(x, weight, offsets)
    for row in range(7):
        group = next(e for e in range(3) if row < ends[e])
        assert torch.allclose(found[row], weight[group] @ x[row])
    assert torch.autograd.gradcheck(grouped_linear, (x, weight, offsets))
    assert torch.autograd.gradgradcheck(grouped_linear, (x, weight, offsets))
    grouped_linear(x, weight, offsets).sum().backward()  # the gradient of a sum is expanded
    torch.library.opcheck(torch.ops.flagformer.grouped_linear, (x.detach(), weight.detach(), offsets))


@pytest.mark.parametrize("ends", [[3, 3, 16], [0, 9, 16]])
def test_grouped_products_of_torch(ends, monkeypatch):
    """torch's kernel, here its fallback on CPU, in place of the loop over groups."""
    x, weight = (torch.randn(size).bfloat16() for size in ((16, 24), (3, 8, 24)))
    offsets = torch.tensor(ends, dtype=torch.int32)
    found = []
    for fused in (False, True):
        monkeypatch.setattr("flagformer.ops.grouped_linear.has_grouped_mm", lambda *_, fused=fused: fused)
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = grouped_linear(*inputs, offsets)
        found.append([out, *torch.autograd.grad(out.sum(), inputs)])
    for one, other in zip(*found):
        assert torch.allclose(one, other, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_computes_the_chosen_experts_alone(dtype):
    """One graph for all lengths, with the FLOPs of k experts."""
    model, _ = feedforward_of(ff_moe=True, ff_glu=True, moe_num_experts=6)
    model = model.to(dtype).train()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for length in (5, 9):
        ids = torch.randint(11, (2, length))
        assert torch.allclose(compiled(ids), model(ids), atol=1e-5 if dtype == torch.float32 else 0.1)
    names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert len(graphs) == 1
    assert sum("grouped_linear" in name for name in names) == 2


ERRORS = {
    "`moe_top_k` must be at most `moe_num_experts` = 4, but is 5": {"moe_top_k": 5},
    "`moe_num_experts` must be a multiple of `moe_num_groups` = 3, but is 4": {
        "moe_num_groups": 3, "moe_top_groups": 1,
    },
    "`moe_top_groups` must be at most `moe_num_groups` = 2, but is 3": {
        "moe_num_groups": 2, "moe_top_groups": 3,
    },
    "`moe_top_k` must be at most 1, the experts of `moe_top_groups` = 1 groups, but is 2": {
        "moe_num_groups": 4, "moe_top_groups": 1,
    },
    "`moe_num_groups` has no effect here": {"moe_num_groups": 2},
    "`moe_top_groups` has no effect here, because `moe_num_groups` is not set": {"moe_top_groups": 1},
    "`moe_normalize_weights` cannot be combined with `moe_top_k=1`": {
        "moe_top_k": 1, "moe_normalize_weights": True,
    },
    "`ff_glu_limit` has no effect here, because `ff_glu` is not set": {"ff_glu_limit": 1.0},
    "`ff_glu_offset` has no effect here": {"ff_glu_offset": 1.0},
    "`moe_shared_inner_dim` has no effect here, because there are no shared": {"moe_shared_inner_dim": 3},
    "`moe_shared_gate` has no effect here": {"moe_shared_gate": True},
    "`moe_balance_bias_rate` has no effect here": {"moe_balance_bias_rate": 0.1},
    "`moe_balance_choices` has no effect here": {"moe_balance_choices": "all", "moe_loss_coef": 0.0},
    "`ff_inner_dim` and `ff_mult` cannot be combined": {"ff_inner_dim": 3, "ff_mult": 2.0},
    "`ff_glu_mult_bias` has no effect": {"ff_glu": True, "ff_glu_mult_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text):
    with pytest.raises(flagformer.FlagError) as error:
        feedforward_of(ff_moe=True, **ERRORS[text])
    assert text in str(error.value)


def test_dense_layers_come_first():
    """DeepSeek-V3: gated feedforwards of their own width in front of mixtures of gated experts."""
    model, _ = feedforward_of(
        depth=3, ff_glu=True, ff_moe=(False, True, True), ff_inner_dim=(20, 6, 6), moe_num_shared_experts=1
    )
    dense, *others = (s.fn for s in model.attn_layers.sublayers if s.kind == "f")
    assert type(dense).__name__ == "GLU"
    assert dense.w_out.in_features == 20
    assert [other.w_out.weight.shape[2] for other in others] == [6, 6]


def test_the_training_loop_moves_the_bias():
    """Once for each step, by the tokens of all micro-batches."""
    model, forward = feedforward_of(ff_moe=True, moe_balance_bias=True, moe_balance_bias_rate=0.25)
    model = model.float().train()
    config = TrainConfig(accumulate=2)
    batch = torch.randint(11, (4, 7)), torch.randint(11, (4, 7))
    train_step(model, make_optimizer(model, config), batch, 1e-3, config)
    assert set(forward.balance_bias.bias.abs().tolist()) <= {0.0, 0.25}
    assert forward.balance_bias.bias.any()
    assert forward.balance_bias.pending_stats is None


def test_a_loop_that_never_moves_the_bias_is_reminded():
    model, _ = feedforward_of(ff_moe=True, moe_balance_bias=True)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)

    def step():
        model(torch.randint(11, (2, 7))).sum().backward()
        optimizer.step()

    step()
    with pytest.warns(UserWarning, match="update_router_bias"):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()
        moved = feedforward_of(ff_moe=True, moe_balance_bias=True)[0]
        update_router_bias(moved)
        optimizer = torch.optim.SGD(moved.train().parameters(), lr=0.01)
        for _ in range(3):
            moved(torch.randint(11, (2, 7))).sum().backward()
            optimizer.step()

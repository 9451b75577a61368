"""Mixtures of experts and product-key memories against their formulas, token by token."""

import pytest
import torch
import torch.nn.functional as F

import flagformer
from flagformer.feedforward.pkm import ProductKeys, parameter_groups
from flagformer.ops.experts import RouterOutput
from flagformer.ops.router_losses import balance_loss, router_z_loss

FLAGS = {
    "num_tokens": 11, "max_seq_len": 16, "dim": 16, "heads": 2, "attn_dim_head": 8, "depth": 1,
    "use_abs_pos_emb": False,
}  # fmt: skip


def feedforward_of(**flags):
    torch.manual_seed(0)
    model = flagformer.build({**FLAGS, **flags}).double().eval()
    return model, model.attn_layers.sublayers[1].fn


class Heard:
    """Input and output of a sublayer in one forward."""

    def __init__(self, sublayer):
        sublayer.register_forward_hook(self.hear)

    def hear(self, module, inputs, out):
        self.x, self.out = inputs[0], out


def expert(forward, number, x, activation):
    hidden = activation(F.linear(x, forward.w_in.weight[number], forward.w_in.bias[number]))
    return F.linear(hidden, forward.w_out.weight[number], forward.w_out.bias[number])


@pytest.mark.parametrize("experts", [1, 2, 5])
@pytest.mark.parametrize("swish", [False, True])
def test_a_token_goes_to_its_two_most_likely_experts(experts, swish):
    model, forward = feedforward_of(ff_moe=True, moe_num_experts=experts, ff_swish=swish)
    heard = Heard(forward)
    model(torch.randint(11, (2, 7)))
    activation = F.silu if swish else F.gelu
    for row in range(2):
        for place in range(7):
            x = heard.x[row, place]
            probabilities = (forward.router.weight @ x).softmax(dim=0)
            best = sorted(range(experts), key=lambda e: -probabilities[e])[:2]
            total = sum(probabilities[e] for e in best)
            want = sum(probabilities[e] / total * expert(forward, e, x, activation) for e in best)
            assert torch.allclose(heard.out[row, place], want, atol=1e-12)


def test_a_graph_computes_the_same():
    _, forward = feedforward_of(ff_moe=True)
    tokens = torch.randn(9, 16, dtype=torch.double, requires_grad=True)
    gates = RouterOutput.of(forward.router(tokens))
    found = []
    for way in (forward._routed, forward._all_experts):
        out = way(tokens, gates)
        found.append(
            [out, *torch.autograd.grad(out.cos().sum(), [tokens, *forward.parameters()], retain_graph=True)]
        )
    for one, other in zip(*found):
        assert torch.allclose(one, other, atol=1e-12)


def test_losses_follow_the_formulas():
    """Over valid tokens: padding is not routed and not counted."""
    torch.manual_seed(0)
    logits = torch.randn(12, 3, dtype=torch.double)
    real = torch.arange(12) < 8
    probabilities = logits[:8].softmax(dim=-1)
    first = probabilities.argmax(dim=-1)
    balance = sum(3 * (first == e).double().mean() * probabilities[:, e].mean() for e in range(3))
    z = logits[:8].exp().sum(dim=-1).log().square().mean()
    for tokens, mask in ((logits, real), (logits[:8], None)):
        assert torch.allclose(balance_loss(RouterOutput.of(tokens), mask), balance)
        assert torch.allclose(router_z_loss(tokens, mask), z)


def test_losses_reach_the_wrapper_in_training():
    model, _ = feedforward_of(ff_moe=True, moe_loss_coef=0.3, moe_z_loss_coef=0.2)
    ids = torch.randint(11, (2, 7))
    _, outputs = model.train()(ids, return_losses=True)
    assert sorted(outputs.losses) == ["moe.balance", "moe.z"]
    wrapper = flagformer.AutoregressiveWrapper(model)
    loss, outputs = wrapper.train()(ids, return_outputs=True)
    assert loss > wrapper.eval()(ids)
    assert outputs.extra_loss > 0
    gone, _ = feedforward_of(ff_moe=True, moe_loss_coef=0.0, moe_z_loss_coef=0.0)
    assert not gone.has_losses


@pytest.mark.parametrize("keys", [3, 40])
def test_a_memory_sums_the_values_of_the_best_pairs_of_half_keys(keys):
    model, forward = feedforward_of(ff_pkm=True, pkm_num_keys=keys)
    heard = Heard(forward)
    model(torch.randint(11, (2, 4)))
    memory = forward.memory
    for row in range(2):
        for place in range(4):
            queries = memory.to_queries(heard.x[row, place]).view(2, memory.heads, -1)  # halves, heads, width
            queries = memory.norm(queries)
            want = torch.zeros(16, dtype=torch.double)
            for head in range(memory.heads):
                halves = [memory.keys[head, :, half] @ queries[half, head] for half in range(2)]
                scores = (halves[0][:, None] + halves[1]).flatten()  # of all pairs of half keys
                best, which = scores.topk(min(32, keys))
                want += best.softmax(dim=0) @ memory.values.weight[which]
            assert torch.allclose(heard.out[row, place], want, atol=1e-12)


def test_values_have_their_own_learning_rate():
    model, forward = feedforward_of(ff_pkm=True, pkm_num_keys=4)
    rest, values = parameter_groups(model, lr=1e-2)
    assert values == {"params": [forward.memory.values.weight], "lr": 1e-2}
    assert len(rest["params"]) == len(list(model.parameters())) - 1
    torch.optim.AdamW([rest, values], lr=1e-3)
    plain, _ = feedforward_of()
    assert len(parameter_groups(plain, lr=1e-2)) == 1


def test_layers_are_chosen_one_by_one():
    model, _ = feedforward_of(
        depth=3, ff_pkm=(False, True, False), ff_moe=(False, False, True), pkm_num_keys=4
    )
    kinds = [type(s.fn).__name__ for s in model.attn_layers.sublayers if s.kind == "f"]
    assert kinds == ["Dense", "ProductKeys", "MixtureOfExperts"]
    assert sum(isinstance(module, ProductKeys) for module in model.modules()) == 1


@pytest.mark.parametrize("flag", ["ff_pkm", "ff_moe"])
def test_flags_without_effect_are_refused(flag):
    with pytest.raises(flagformer.FlagError, match=r"`ff_post_act_ln` has no effect.*`feedforward`"):
        feedforward_of(**{flag: True}, ff_post_act_ln=True)
    if flag == "ff_pkm":
        with pytest.raises(flagformer.FlagError, match="`ff_swish` and `ff_pkm` cannot be combined"):
            feedforward_of(ff_pkm=True, ff_swish=True)
        feedforward_of(depth=2, ff_pkm=(True, False), ff_swish=True)

"""Reversible execution as an ordinary autograd operator: hooks, modes, retained graphs, compilation."""

import copy

import pytest
import torch
from executor_models import DROPS, SIZES, error, inputs, plain, trained
from torch import nn

import flagformer
from flagformer import Decoder
from flagformer.flags import Spec
from flagformer.flow import OutputCollector, flatten, unflatten
from flagformer.flow.bias_views import DenseBias
from flagformer.flow.layout import Layout
from flagformer.residual.additive import Additive

LM = {"num_tokens": 11, "max_seq_len": 16, "reversible": True, **SIZES}


def decoder(**flags):
    torch.manual_seed(4)
    return Decoder(**{**SIZES, "reversible": True, **flags})


def test_hooks_run_once_per_gradient():
    layers = decoder(weight_tie_layers=True, rel_pos_bias=True).double()
    _, wanted, _ = trained(plain(copy.deepcopy(layers)), torch.float64)
    seen = []
    parameters = list(layers.parameters())
    for place, parameter in enumerate(parameters):
        parameter.register_hook(lambda grad, place=place: seen.append((place, grad)) or grad * 2)
        parameter.register_post_accumulate_grad_hook(lambda one: seen.append((-1, one.grad)))
    _, grads, _ = trained(layers, torch.float64)
    assert len(seen) == 2 * len(parameters)
    assert error([grads[0] * 2, *grads[1:]], [one * 2 for one in wanted]) < 1e-12
    assert parameters[0]._backward_hooks, "hooks are restored"


def test_a_retained_graph_can_run_backward_twice():
    layers = decoder(**DROPS).double()
    (x,) = inputs(layers, torch.float64)
    loss = layers(x).square().sum()
    loss.backward(retain_graph=True)
    once = [x.grad.clone(), *(p.grad.clone() for p in layers.parameters())]
    loss.backward()
    assert error([x.grad, *(p.grad for p in layers.parameters())], [2 * one for one in once]) < 1e-12
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_of_some_inputs_only():
    """`autograd.grad` runs a part of the graph."""
    layers = decoder().double()
    (x,) = inputs(layers, torch.float64)
    wanted = torch.autograd.grad(plain(copy.deepcopy(layers))(x).square().sum(), x)
    assert error(torch.autograd.grad(layers(x).square().sum(), x), wanted) < 1e-12
    last = list(layers.sublayers[-1].parameters())
    reference = plain(copy.deepcopy(layers))
    wanted = torch.autograd.grad(reference(x).square().sum(), list(reference.sublayers[-1].parameters()))
    assert error(torch.autograd.grad(layers(x).square().sum(), last), wanted) < 1e-12


def test_gradients_accumulate_over_batches():
    layers = decoder().double()
    (x,) = inputs(layers, torch.float64)
    layers(x).square().sum().backward()
    once = [p.grad.clone() for p in layers.parameters()]
    layers(x).square().sum().backward()
    assert error([p.grad for p in layers.parameters()], [2 * one for one in once]) < 1e-12


def test_a_parameter_changed_before_the_backward_is_an_error():
    layers = decoder()
    loss = layers(torch.randn(2, 7, 16)).sum()
    with torch.no_grad():
        layers.sublayers[1].fn.w_in.weight.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_a_mode_changed_before_the_backward_is_an_error():
    layers = decoder(**DROPS)
    loss = layers(torch.randn(2, 7, 16)).sum()
    layers.eval()
    with pytest.raises(RuntimeError, match="from training to eval"):
        loss.backward()


def test_backward_can_run_inside_autocast():
    """The forward has no gradients and must not fill autocast's weight cache."""
    layers = decoder()
    (x,) = inputs(layers, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        layers(x).float().square().sum().backward()
    inside = [p.grad.clone() for p in layers.parameters()]
    layers.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layers(x).float().square().sum()
    loss.backward()
    assert error([p.grad for p in layers.parameters()], inside) == 0.0


def test_sequential_layers_before_reversible_ones_get_gradients():
    """A forward of the same weights in sequential order, in one autocast region."""
    layers = decoder()
    (x,) = inputs(layers, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        layers(x)
        layers(x, collector=OutputCollector({"attn.weights"})).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layers.parameters())


def test_generators_are_restored():
    """The backward repeats the random draws and restores the generators."""
    layers = decoder(**DROPS)
    loss = layers(torch.randn(2, 7, 16)).sum()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("whole", [False, True], ids=["each sublayer", "the whole, in pieces"])
def test_compiled(whole):
    torch._dynamo.reset()
    layers = decoder(cross_attend=True, rel_pos_bias=True).double()
    _, wanted, _ = trained(copy.deepcopy(layers), torch.float64)
    if whole:
        compiled = torch.compile(layers, backend="aot_eager")
        x, context = inputs(layers, torch.float64)
        out = compiled(x, context=context)
        (out * out.detach().cos()).sum().backward()
        grads = [one.grad for one in (x, context, *layers.parameters())]
    else:
        for sublayer in layers.sublayers:
            sublayer.compile(backend="aot_eager")
        _, grads, _ = trained(layers, torch.float64)
    assert error(grads, wanted) < 1e-12


def test_attention_maps_and_streams():
    """Requested outputs come from the same two streams, with gradients."""
    torch.manual_seed(3)
    model = flagformer.build(LM).double()
    ids = torch.randint(11, (2, 7))
    logits, outputs = model(ids, return_intermediates=True)
    torch.testing.assert_close(logits, model(ids), rtol=0, atol=1e-12)
    assert len(outputs.attention) == 3
    streams = outputs.hiddens
    assert len(streams) == 7
    x = streams[0]
    added = [after - before for before, after in zip((x, *streams), streams[1:])]
    assert all(one.abs().max() > 1e-3 for one in added)
    torch.testing.assert_close(
        outputs.embeddings, model.attn_layers.final_norm((streams[-1] + streams[-2]) / 2), rtol=0, atol=1e-12
    )
    outputs.attention[0].square().sum().backward()
    assert model.token_emb.weight.grad.abs().max() > 0


@pytest.mark.parametrize("model", ["decoder", "prefix_decoder"])
def test_decoding_equals_the_full_forward(model):
    torch.manual_seed(3)
    net = flagformer.build({**LM, "model": model, "shift_tokens": 1, "alibi_pos_bias": True}).double().eval()
    ids = torch.randint(11, (2, 9))
    how = {"prefix_attn_len": torch.tensor([3, 2])} if model == "prefix_decoder" else {}
    state = net.init_state(2, 9)
    pieces = [
        net(ids[:, :4], state=state, **how),
        *(net(ids[:, i : i + 1], state=state) for i in range(4, 9)),
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), net(ids, **how), rtol=0, atol=1e-12)
    assert net(ids, **how).requires_grad


def test_state_dicts_load_under_every_executor():
    models = [flagformer.build({**LM, "reversible": False, **extra}) for extra in (
        {}, {"checkpoint": "sublayer"}, {"reversible": True}, {"reversible": True, "reversible_exact": True},
    )]  # fmt: skip
    keys = [list(model.state_dict()) for model in models]
    assert all(one == keys[0] for one in keys)
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())


def test_explain_names_the_saved_tensors():
    assert "executor: Reversible, keeps the two streams" in flagformer.build(LM).explain()


REFUSED = {
    "residual_attn": {"residual_attn": True},
    "cross_residual_attn": {"cross_residual_attn": True, "cross_attend": True},
    "gate_residual": {"gate_residual": True},
    "scale_residual": {"scale_residual": True},
    "scale_residual_constant": {"scale_residual_constant": 2.0},
    "resi_dual": {"resi_dual": True},
    "pre_norm=False": {"pre_norm": False},
    "checkpoint": {"checkpoint": "selective"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_flags_are_refused_by_name(name):
    with pytest.raises(flagformer.FlagError, match=r"because") as error:
        decoder(**REFUSED[name])
    assert f"`{name}" in str(error.value)
    assert "`reversible`" in str(error.value)


def test_a_custom_residual_is_refused():
    class Mine(Additive):
        component = None

    with pytest.raises(flagformer.FlagError, match="`reversible` and `residual`"):
        decoder(residual=Spec(Mine))


class Handing(nn.Module):
    """A custom feedforward without declared capabilities."""

    def __init__(self, dims, activation):
        super().__init__()
        self.outer = nn.Linear(dims.dim, dims.dim)

    def forward(self, x, side):
        side.carry["mine"] = x
        return self.outer(x)


def test_undeclared_inter_layer_state_is_found():
    with pytest.raises(ValueError, match="passes `mine`"):
        decoder(feedforward=Spec(Handing))(torch.randn(2, 7, 16))


def test_records_are_flattened_and_rebuilt():
    layout = Layout(torch.arange(3)[None])
    record = {
        0: (DenseBias(bias=torch.ones(2), allowed=None), 3),
        1: (layout, [torch.zeros(1)], "word"),
    }
    empty, tensors = flatten(record)
    assert [len(one) for one in tensors] == [2, 1, 1]
    again = unflatten(empty, iter([one + 1 for one in tensors]))
    assert again[0][0].bias.tolist() == [2.0, 2.0]
    assert again[0][1] == 3
    assert again[1][0].positions.tolist() == [[1, 2, 3]]
    assert again[1][1][0].item() == 1.0
    assert again[1][2] == "word"


def test_saved_bytes_do_not_grow_with_depth():
    kept = {}
    for depth in (4, 48):
        layers = decoder(depth=depth, rel_pos_bias=True)
        seen = {}

        def pack(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in layers.parameters()}
        x = torch.randn(2, 32, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layers(x)
        kept[depth] = sum(size for place, size in seen.items() if place not in own)
    assert kept[48] <= 1.05 * kept[4]

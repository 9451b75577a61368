"""Transforms of `torch.func` over every setting: per-sample gradients, ensembles, second derivatives; and a
plain forward afterwards."""

import copy

import pytest
import torch
from property_checks import failures
from property_settings import TINY
from property_subject import Subject, perturb, same
from test_properties_singles import PARTS, SINGLES, tiny, together
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import flagformer
from commit_sample import part_of
from flagformer import AutoregressiveWrapper, XTransformer

ROUNDING = 1e-8  # fp64, relative to the largest: products of second derivatives add terms of both signs


def named(tensors):
    return {name: tensor.detach() for name, tensor in tensors}


def call(subject, model=None):
    """`(parameters, buffers, ids, context, condition) -> scalar of the logits of a row`, and its inputs."""
    model = subject.model if model is None else model
    names, inputs = list(subject.side(0, 1)), [subject.ids, *subject.side(0, 1).values()]

    def loss(parameters, buffers, row, *given):
        side = {name: one[None] for name, one in zip(names, given)}
        return functional_call(model, (parameters, buffers), (row[None],), side).cos().sum()

    return loss, inputs


def rows_of_gradients(subject):
    """The result of one backward a row."""
    found = []
    for row in (0, 1):
        loss = subject.model(subject.ids[row : row + 1], **subject.side(row)).cos().sum()
        grads = torch.autograd.grad(loss, list(subject.model.parameters()), allow_unused=True)
        found.append(
            [torch.zeros_like(p) if g is None else g for g, p in zip(grads, subject.model.parameters())]
        )
    return [torch.stack(parts) for parts in zip(*found)]


def per_sample_gradients(subject):
    loss, inputs = call(subject)
    parameters, buffers = named(subject.model.named_parameters()), named(subject.model.named_buffers())
    rows = (0,) * len(inputs)
    got = vmap(grad(loss), in_dims=(None, None, *rows), randomness="different")(parameters, buffers, *inputs)
    for name, want in zip(parameters, rows_of_gradients(subject)):
        same(got[name], want, f"per-sample gradients of {name}")


def ensembles(subject):
    models = [copy.deepcopy(subject.model) for _ in range(2)]
    perturb(models[1], seed=5)
    parameters, buffers = stack_module_state(models)
    loss, inputs = call(subject, models[0])
    one = [part[0] for part in inputs]
    got = vmap(loss, in_dims=(0, 0, *[None] * len(one)))(parameters, buffers, *one)
    for number, model in enumerate(models):
        want = loss(named(model.named_parameters()), named(model.named_buffers()), *one)
        same(got[number], want, f"model {number} of an ensemble", ROUNDING)


def hessian_vector_products(subject):
    """Forward over reverse and reverse over reverse: a Hessian is symmetric."""
    loss, inputs = call(subject)
    parameters, buffers = named(subject.model.named_parameters()), named(subject.model.named_buffers())
    one = [part[0] for part in inputs]
    generator = torch.Generator().manual_seed(4)
    along = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in parameters.items()
    }

    def slope(parameters):
        return grad(loss)(parameters, buffers, *one)

    _, forward = jvp(slope, (parameters,), (along,))
    reverse = grad(lambda p: sum((slope(p)[name] * along[name]).sum() for name in along))(parameters)
    most = max(value.abs().max() for value in reverse.values())
    for name, value in forward.items():
        same(value, reverse[name], f"Hessian-vector product of {name}", ROUNDING * most)


def leaves_the_model_alone(subject):
    """Parameters and buffers are the same tensors afterwards, and a plain forward gives the same logits."""
    model = subject.model
    before, want = [*model.parameters(), *model.buffers()], subject(subject.ids)
    for check in (per_sample_gradients, ensembles):
        check(subject)
    assert all(now is then for now, then in zip([*model.parameters(), *model.buffers()], before))
    same(subject(subject.ids), want, "a plain forward afterwards", 0.0)
    subject.loss().backward()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("part", part_of(range(PARTS), PARTS))
def test_settings_under_transforms(part):
    """Several in one model, as a transform costs about as much for ten of them as for one."""
    found = []
    for members, flags in together()[part::PARTS]:
        subject = Subject(flags)
        subject.model.train(not any("dropout" in flag for flag in flags))
        checks = [leaves_the_model_alone]
        if "ff_pkm" not in flags:  # torch has no forward derivative of embedding bags
            checks.append(hessian_vector_products)
        found += [f"{', '.join(members)}: {text}" for text in failures(subject, checks)]
    assert not found


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "flags", [{}, {"num_clusters": 3}, {"ff_moe": True}, {"attn_z_loss_weight": 0.1}], ids=str
)
@pytest.mark.parametrize("chunks", [1, 3])
def test_per_sample_gradients_of_losses(flags, chunks):
    """Of the wrapper in training: cross entropy, in chunks or at once, and auxiliary losses."""
    torch.manual_seed(3)
    net = perturb(flagformer.build({**TINY, **flags, "depth": 1}).double()).train()
    wrapper = AutoregressiveWrapper(net, loss_chunks=chunks)
    parameters, ids = named(wrapper.named_parameters()), torch.randint(11, (2, 9))
    got = vmap(grad(lambda p, row: functional_call(wrapper, p, (row[None],))), (None, 0))(parameters, ids)
    for row in (0, 1):
        wrapper.zero_grad()
        wrapper(ids[row : row + 1]).backward()
        for name, parameter in wrapper.named_parameters():
            same(got[name][row], parameter.grad, f"gradient of {name}", 1e-6)  # a loss is fp32
    net.update_kmeans()


FORMS = {
    "mask": (torch.arange(9) < torch.tensor([[9], [6]]), lambda one: {"mask": one[None]}),
    "seq_start_pos": (torch.tensor([0, 3]), lambda one: {"seq_start_pos": one[None]}),
    "seq_lens": (torch.tensor([[4, 5], [7, 2]]), lambda one: {"seq_lens": one[None]}),
    "pos": (torch.stack([torch.arange(9), torch.arange(9) + 4]), lambda one: {"pos": one}),
    "attn_mask": (torch.rand(2, 9, 9) < 0.8, lambda one: {"attn_mask": one | torch.eye(9).bool()}),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "flags", [{"rel_pos_bias": True}, {"num_clusters": 3}, {"num_memory_tokens": 2}], ids=str
)
def test_forms_of_a_call_under_vmap(form, flags):
    """Inputs of a row other than its ids can be batched too."""
    if form == "pos" and "num_memory_tokens" in flags:
        flags = {**flags, "use_abs_pos_emb": True}
    subject = Subject({**TINY, **flags, "depth": 1})
    values, keywords_of = FORMS[form]
    got = vmap(lambda row, one: subject.model(row[None], **keywords_of(one))[0])(subject.ids, values)
    for row in (0, 1):
        want = subject(subject.ids[row : row + 1], **keywords_of(values[row]))
        same(got[row].detach(), want[0], f"row {row}")


def every_name(model):
    """The number of registrations of each module."""
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names.values()


@pytest.mark.parametrize("part", range(PARTS))
def test_modules_are_registered_once(part):
    """Otherwise `functional_call` replaces one of their names only."""
    for name in list(SINGLES)[part::PARTS]:
        for kind in ("decoder", "encoder"):
            try:
                with torch.device("meta"):
                    model = flagformer.build(tiny(name, kind))
            except flagformer.FlagError:
                continue
            assert all(len(each) == 1 for each in every_name(model)), f"{name} ({kind})"


def test_tied_embeddings_of_two_halves_are_registered_once():
    flags = {"dim": 16, "tie_token_emb": True}
    for half in ("enc", "dec"):
        flags |= {f"{half}_num_tokens": 11, f"{half}_max_seq_len": 8, f"{half}_depth": 1, f"{half}_heads": 2}
    model = XTransformer(**flags)
    assert all(len(names) == 1 for names in every_name(model))
    assert model.decoder.net.token_emb is model.encoder.token_emb

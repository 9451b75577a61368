"""`reset_parameters`: a model made on the meta device, or trained, starts like a newly built one.

For every setting of the catalogue; uninitialised memory is NaN.
"""

import math

import pytest
import torch
from property_settings import TINY
from test_properties_buffers import on_meta, unfilled_memory_is_nan  # noqa: F401  (an automatic fixture)
from test_properties_singles import tiny, together
from test_properties_storage import WHOLE

import flagformer
from flagformer.models.build import MODELS

SELECTED = {"num_clusters": 2, "routing_selection": "topk", "cluster_num_mem_kv": 2}
MORE = {
    **{f"nothing, {kind}": tiny("nothing", kind) for kind in MODELS},
    **{f"whole {kind}": {"model": kind, **flags} for kind, flags in WHOLE.items()},
    "whole vit with registers": {"model": "vit", **WHOLE["vit"], "num_register_tokens": 3, "num_classes": 5},
    "whole vit with a class token": {
        "model": "vit",
        **WHOLE["vit"],
        "num_classes": 5,
        "pooler": True,
        "class_token": True,
        "class_token_position": True,
        "pooling": "class",
        "post_emb_norm": True,
        "post_emb_norm_bias": True,
    },
    "embed_num_tokens": {**TINY, "depth": 1, "embed_num_tokens": {"kind": 3}},
    "cluster_num_mem_kv": {**TINY, "model": "encoder", "depth": 1, "window_size": 4, **SELECTED},
    "gates and routing": {**tiny("num_clusters", "decoder"), "attn_gate_values": True},
    "scaled and zero": {**TINY, "depth": 2, "depth_scale_residual": True, "attn_zero_init_output": True},
}


def every():
    """name -> flags; of several settings in one model where they build together."""
    return {", ".join(names): flags for names, flags in together()} | MORE


FEWEST = 16  # enough elements for a meaningful standard deviation


def built(flags, seed):
    torch.manual_seed(seed)
    return flagformer.build(flags)


@pytest.fixture(scope="module")
def fresh():
    """name -> the state built by each of two seeds."""
    return {
        name: tuple(built(flags, seed).state_dict() for seed in (1, 2)) for name, flags in every().items()
    }


def tensors_of(module):
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def by_all_modules(model):
    """The order of most recipes: parents before children."""
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def by_owners(model):
    """The order of FSDP and Lightning: modules with tensors of their own, one by one."""
    for module in model.modules():
        if tensors_of(module):
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()


def differences(got, first, second):
    """Where `got` is not distributed like two models of different seeds."""
    for name, tensor in got.items():
        constant = first[name] == second[name]
        random = tensor[~constant]
        if not tensor.isfinite().all():
            yield f"{name} is not finite"
        elif not torch.equal(tensor[constant], first[name][constant]):
            yield f"{name} has other constants"
        elif random.numel() >= FEWEST:
            # the log ratio of two standard deviations of n samples varies by about n ** -0.5
            ratio = random.std() / first[name][~constant].std()
            if not abs(math.log(ratio)) < 6 * random.numel() ** -0.5:
                yield f"{name} has {ratio} of the standard deviation"


def test_every_module_with_tensors_has_the_method():
    wrong = {
        f"{name}: {type(module).__name__}"
        for name, flags in every().items()
        for module in on_meta(flags).modules()
        if tensors_of(module) and not hasattr(module, "reset_parameters")
    }
    assert not wrong


def test_the_model_resets_to_what_its_seed_builds(fresh):
    """From uninitialised memory, and from other values."""
    wrong = []
    for name, flags in every().items():
        model = on_meta(flags).to_empty(device="cpu")
        for seed, want in enumerate(fresh[name], start=1):
            torch.manual_seed(seed)
            model.reset_parameters()
            got = model.state_dict()
            other = [key for key in want if not torch.equal(got[key], want[key])]
            wrong += [f"{name}, seed {seed}: {', '.join(other)}"] if other else []
    assert not wrong, "\n".join(wrong)


def test_a_module_wise_reset_gives_a_new_model(fresh):
    """In distribution: constants are equal, random tensors have the same standard deviation."""
    wrong = []
    for name, flags in every().items():
        for walk in (by_all_modules, by_owners):
            model = on_meta(flags)
            torch.manual_seed(3)
            walk(model)
            found = differences(model.state_dict(), *fresh[name])
            wrong += [f"{name}, {walk.__name__}: {text}" for text in found]
    assert not wrong, "\n".join(wrong)


def test_pending_k_means_statistics_are_dropped():
    model = built(tiny("num_clusters", "decoder"), 1)
    model.train()
    model(torch.randint(11, (2, 9)))
    model.reset_parameters()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.update_kmeans()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_custom_initialisation_is_applied_again():
    def ones(sublayers):
        for sublayer in sublayers:
            torch.nn.init.ones_(
                sublayer.fn.to_out.weight if sublayer.kind == "a" else sublayer.fn.w_out.weight
            )

    with torch.device("meta"):
        layers = flagformer.Decoder(dim=16, depth=2, heads=2, init=ones)
    layers.to_empty(device="cpu").reset_parameters()
    assert all(p.isfinite().all() for p in layers.parameters())
    assert all(s.fn.to_out.weight.eq(1).all() for s in layers.sublayers if s.kind == "a")
    assert all(s.fn.w_out.weight.eq(1).all() for s in layers.sublayers if s.kind == "f")


def test_a_module_that_cannot_be_reset_is_named():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.size = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.size

    layers = flagformer.Decoder(dim=16, depth=1, heads=2, activation=Scale())
    with pytest.raises(TypeError, match=r"`sublayers.1.fn.activation` must have a method `reset_parameters`"):
        layers.reset_parameters()

"""Pairs, images and tied heads that FSDP2 shards by parts train and generate as unsharded ones do."""

import copy

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from flagformer import AutoregressiveWrapper, Memformer, XTransformer, build
from flagformer.wrappers.routing_pair import RoutingTransformerEncDec

SIZES = {"num_tokens": 23, "max_seq_len": 16, "depth": 1, "heads": 2}
ONE = {**SIZES, "model": "decoder", "dim": 16, "tie_embedding": True, "emb_dim": 8, "logits_bias": True}
IMAGES = {
    "model": "vit", "image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 5, "dim": 16, "depth": 1,
    "heads": 2, "num_register_tokens": 2, "class_token": True,
}  # fmt: skip
CLUSTERS = {"num_clusters": 2, "window_size": 4}
SRC, TGT = torch.randint(23, (2, 2, 9), generator=torch.Generator().manual_seed(1))
IMAGE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()


def pair(**flags):
    return {f"{half}_{name}": value for half in ("enc", "dec") for name, value in {**SIZES, **flags}.items()}


def generated(model, **keywords):
    return model.generate(SRC, TGT[:, :2], 4, temperature=0, **keywords)


# make; the loss of a call; its output without gradient
MODELS = {
    "tied pair": (
        lambda: XTransformer(dim=16, tie_token_emb=True, **pair()),
        lambda model: model(SRC, TGT),
        generated,
    ),
    "pair in chunks": (
        lambda: XTransformer(dim=16, loss_chunks=3, dec_tie_embedding=True, **pair(rel_pos_bias=True)),
        lambda model: model(SRC, TGT),
        generated,
    ),
    "slots": (
        lambda: Memformer(dim=16, num_memory_slots=3, mem_update_attn_heads=2, **pair()),
        lambda model: model(SRC, TGT, mems=model(SRC)[1])[2],
        lambda model: generated(model, mems=model(SRC)[1]),
    ),
    "routing pair": (
        lambda: RoutingTransformerEncDec(dim=16, **pair(**CLUSTERS)),
        lambda model: model(SRC, TGT, return_loss=True)[0],
        lambda model: model.generate(SRC, TGT[:, :2], 4, temperature=0),
    ),
    "images": (lambda: build(IMAGES), lambda model: model(IMAGE).cos().sum(), lambda model: model(IMAGE)),
    "tied head in chunks": (
        lambda: AutoregressiveWrapper(build(ONE), loss_chunks=3),
        lambda model: model(SRC),
        lambda model: model.generate(SRC[:, :3], 4, temperature=0),
    ),
}  # fmt: skip


def holding(parts):
    return [part for part in parts if any(True for _ in part.parameters())]


# the modules given to `fully_shard`, in this order
PARTS = {
    "children": lambda model: [*holding(model.children()), model],
    "children alone": lambda model: holding(model.children()),
    "sublayers": lambda model: [part for part in model.modules() if hasattr(part, "input_mixer")],
    "heads": lambda model: [
        *holding(getattr(part, "head", torch.nn.Identity()) for part in model.modules()), model,
    ],
    "all": lambda model: [*(part for part in reversed([*model.modules()]) if part._parameters), model],
}  # fmt: skip


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def used(model, parameters, loss, output):
    """Outputs without gradient before and after a training step, and the step's loss and gradients."""
    found = {}
    for when in ("before", "after"):
        model.eval()
        with torch.no_grad():
            found[when] = output(model)
        if when == "before":
            value = loss(model.train())
            value.backward()
            found["loss"] = value.detach()
            found |= {name: whole(parameter.grad) for name, parameter in parameters.items()}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
def test_a_sharded_wrapper_equals_the_unsharded_one(name, parts, mesh):
    make, loss, output = MODELS[name]
    torch.manual_seed(0)
    plain = make().double()
    for parameter in plain.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model = copy.deepcopy(plain)
    for part in PARTS[parts](model):
        if not hasattr(part, "unshard"):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    want = used(plain, dict(plain.named_parameters()), loss, output)
    got = used(model, dict(model.named_parameters()), loss, output)
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=1e-9, msg=f"{key} differs")

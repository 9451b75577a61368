"""`reset_parameters` of a model sharded by FSDP2 on the meta device, before it has values."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from flagformer import build

BASE = {"num_tokens": 50, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
# each has an initialisation of part of a parameter, or a buffer
SETTINGS = {
    "gates of a residual": {"gate_residual": True},
    "talking heads": {"attn_talking_heads": True},
    "gates of values": {
        "attn_gate_value_heads": True,
        "attn_gate_values": True,
        "attn_gate_values_bias": True,
    },
    "routing": {"num_clusters": 2, "window_size": 8},
    "starts": {"depth_scale_residual": True, "ff_zero_init_output": True},
    "looked-up values": {"ff_pkm": True, "pkm_num_keys": 6},
}


def whole(model):
    state = model.state_dict()
    return {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in state.items()}


@pytest.mark.parametrize("by_walk", [False, True], ids=["model", "walk"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_sharded_model_is_initialised(name, by_walk, mesh):
    flags = {**BASE, **SETTINGS[name]}
    first, second = build(flags).state_dict(), build(flags).state_dict()
    with torch.device("meta"):
        model = build(flags)
    for sublayer in model.attn_layers.sublayers:
        fully_shard(sublayer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    for module in model.modules() if by_walk else [model]:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for key, value in whole(model).items():
        constant = first[key] == second[key]
        assert value.isfinite().all(), key
        assert torch.equal(value[constant], first[key][constant]), key
        assert constant.all() or not torch.equal(value, first[key]), key
    assert model(torch.arange(8).view(2, 4)).isfinite().all()

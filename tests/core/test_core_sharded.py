"""Generation from a model that FSDP2 has sharded: parts are used outside a forward there."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flagformer import AutoregressiveWrapper, build

PARTS = {
    "sublayers": lambda model: [*model.attn_layers.sublayers],
    "sublayers and bias": lambda model: [*model.attn_layers.sublayers, model.attn_layers.position_bias],
    "the whole": lambda model: [],
    "head": lambda model: [model.head],
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process is enough: its parameters are DTensors too."""
    place = tmp_path_factory.mktemp("sharded") / "store"
    dist.init_process_group("gloo", store=dist.FileStore(str(place), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("apart", PARTS)
@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize(
    "flags",
    [{"rel_pos_bias": True}, {"dynamic_pos_bias": True}, {"rotary_pos_emb": True}, {"tie_embedding": True}],
    ids=lambda flags: "-".join(flags),
)
def test_a_sharded_model_generates_as_a_whole_one(flags, reshard, apart, mesh):
    base = {"num_tokens": 50, "max_seq_len": 16, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
    torch.manual_seed(0)
    model = build({**base, **flags}).eval()
    prompt = torch.arange(8).view(2, 4)
    want = AutoregressiveWrapper(model).generate(prompt, 4, temperature=0)
    for part in PARTS[apart](model):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    for _ in range(2):  # FSDP2 gathers for a first time in training: it cannot do so in inference mode
        model(prompt).sum().backward()
        assert torch.equal(AutoregressiveWrapper(model).generate(prompt, 4, temperature=0), want)

"""Every parameter is used in the forward of its own module, the only place where FSDP2 gathers it.

Each module with parameters is sharded separately, the finest way, and the model must equal the
unsharded one in generation, eval mode and training, in the first and in later calls.
"""

import copy

import pytest
import torch
from property_settings import TINY
from property_subject import TIGHT, Subject, same
from test_properties_linears import subject_of, used
from test_properties_singles import SINGLES, together
from torch.distributed.fsdp import fully_shard

from flagformer import AutoregressiveWrapper
from flagformer.lab.reference import settings

PARTS = 4
# Gradients of `reversible` layers go to the parameters themselves: they are sharded as one.
AS_ONE = {"reversible", "reversible_exact (tuned)"}
APART = tuple(name for name in SINGLES if name not in AS_ONE)
CLUSTERS = {**settings(), **TINY, "cluster_num_mem_kv": 2}
FURTHER = {
    "memory of clusters in cross-attention": {
        **CLUSTERS, "cross_attend": True, "context_num_clusters": 3, "context_window_size": 2,
    },
    "memory of clusters": {
        **CLUSTERS, "model": "encoder", "num_clusters": 3, "window_size": 2, "routing_selection": "topk",
    },
    "patterns of memory, bias and local heads": {
        **settings(), **TINY, "num_memory_tokens": 2, "rel_pos_bias": True, "n_local_attn_heads": 2,
        "local_attn_window_size": 3,
    },
}  # fmt: skip


def shard_apart(model, mesh):
    """Shard each module with parameters, inner ones first, and the model."""
    for part in reversed(list(model.modules())):
        if part is not model and part._parameters:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def trained(subject, model, chunks):
    """The loss of a training step and the gradients of all parameters; `chunks`: of the token loss."""
    model.train().zero_grad()
    torch.manual_seed(3)
    side = subject.side(0, 1)
    if chunks is None:
        loss = model(subject.ids, **side).cos().sum()
    else:
        loss = AutoregressiveWrapper(model, loss_chunks=chunks)(subject.ids, **side)
    loss.backward()
    model.eval()
    return {"loss": loss.detach(), **{name: whole(p.grad) for name, p in model.named_parameters()}}


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def everything(subject, model):
    """Outputs in every kind of call, and gradients."""
    causal = subject.kind == "decoder"
    found = used(subject, model) if causal else {"logits": model(subject.ids).detach()}
    learns_tokens = causal and not {"return_only_embed", "logits_dim"} & set(subject.flags)
    for chunks in (None, 3) if learns_tokens else (None,):
        step = trained(subject, model, chunks)
        found |= {f"{name} ({chunks} chunks)": value for name, value in step.items()}
    return found


def compare(subject, mesh):
    model, plain = subject.model, copy.deepcopy(subject.model)
    shard_apart(model, mesh)
    if subject.kind == "decoder" and model.can_cache:  # before anything else has gathered parameters
        model.init_state(1, 2)
    want = everything(subject, plain)
    for when in ("first", "again"):
        got = everything(subject, model)
        assert got.keys() == want.keys()
        for name, value in want.items():
            if value is not None:
                assert got[name] is not None, f"{name}, {when}: no gradient"
                same(got[name], value, f"{name}, {when}", TIGHT * max(1, value.abs().max().item()))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
def test_every_module_with_parameters_can_be_sharded(part, mesh):
    """Several settings in one model, if they can be combined."""
    found = []
    for names, flags in together(APART)[part::PARTS]:
        try:
            compare(subject_of(flags), mesh)
        except Exception as error:
            found.append(f"{', '.join(names)}: {type(error).__name__}: {error}")
    assert not found


@pytest.mark.parametrize("name", FURTHER)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
def test_further_settings_can_be_sharded(name, mesh):
    compare(Subject(FURTHER[name]), mesh)

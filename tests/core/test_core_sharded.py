"""Models sharded by FSDP2 in any way train, decode and read segments as unsharded ones do."""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import flagformer
from flagformer import AutoregressiveWrapper, build, train_segments

BASE = {
    "model": "decoder", "num_tokens": 23, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2,
    "attn_dim_head": 8,
}  # fmt: skip
MODELS = {
    "rotary": {"rotary_pos_emb": True},
    "T5, tied": {"rel_pos_bias": True, "tie_embedding": True},
    "dynamic, memory": {"dynamic_pos_bias": True, "num_memory_tokens": 2, "attn_num_mem_kv": 1},
    "residual scores": {"residual_attn": True, "depth": 3},
    "checkpointed": {"checkpoint": "sublayer", "rel_pos_bias": True},
    "checkpointed by choice": {"checkpoint": "selective", "shift_tokens": 1},
    "reversible": {"reversible": True, "rel_pos_bias": True},
    "routing": {"num_clusters": 2, "window_size": 4, "rotary_pos_emb": True},
    "slots": {"num_memory_slots": 3, "cross_attend": True, "mem_update_attn_heads": 2},
    "memories": {"max_mem_len": 8, "rotary_pos_emb": True},
}  # fmt: skip
IDS = torch.randint(23, (2, 12), generator=torch.Generator().manual_seed(1))
LONG = torch.cat([IDS, IDS.flip(1)], dim=1)


def holders(learner):
    """Modules with parameters, the innermost first."""
    return [part for part in reversed(list(learner.modules())) if part._parameters]


# the modules given to `fully_shard`, in this order
PARTS = {
    "the wrapper": lambda learner: [learner],
    "the model": lambda learner: [learner.net],
    "sublayers": lambda learner: [*learner.net.attn_layers.sublayers, learner.net],
    "sublayers alone": lambda learner: [*learner.net.attn_layers.sublayers],
    "the stack": lambda learner: [learner.net.attn_layers, learner.net],
    "embedding and head": lambda learner: [learner.net.token_emb, learner.net.head, learner.net],
    "every floor": lambda learner: [
        *learner.net.attn_layers.sublayers, learner.net.attn_layers, learner.net, learner,
    ],
    "all that holds parameters": lambda learner: [*holders(learner), learner],
}  # fmt: skip


PIECES = {"sublayers", "sublayers alone", "every floor", "all that holds parameters"}
# `train_segments` takes the model: its parameters must not be gathered by an outer module
AROUND = {"the wrapper", "every floor", "all that holds parameters"}


def make(flags, loss_chunks=1):
    torch.manual_seed(0)
    model = build({**BASE, **flags}).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return AutoregressiveWrapper(model, loss_chunks=loss_chunks)


def shard(learner, parts, mesh, **how):
    for part in PARTS[parts](learner):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, **how)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def used(learner):
    """Generation in its forms, the loss in eval mode, and a text of several segments as a stream."""
    learner.eval()
    prompt, model = IDS[:, :4], learner.net
    found = {
        "greedy": learner.generate(prompt, 5, temperature=0),
        "without a state": learner.generate(prompt, 5, temperature=0, cache_kv=False),
        "drawn": learner.generate([[1, 2, 3], [4]], 5, seed=3),
        "contrasted": learner.generate(prompt, 3, temperature=0, amateur_model=learner),
        "searched": learner.beam_search(prompt, 4, beams=2),
    }
    with torch.no_grad():
        found["loss in eval mode"] = learner(IDS)
    if model.max_mem_len or model.num_memory_slots:
        stream = model.stream(2)
        found["stream"] = torch.cat([stream(part) for part in LONG.split((3, 10, 11), dim=1)], dim=1)
    return found


def trained(learner, parameters, segments):
    """The loss and the gradients of a step; with `segments` of memory replay too."""
    learner.train()
    steps = {"step": lambda: learner(IDS)}
    if segments:
        steps["segments"] = lambda: train_segments(learner.net, LONG)[0]
    found = {}
    for name, step in steps.items():
        for parameter in parameters.values():
            parameter.grad = None
        loss = step()
        if loss.requires_grad:
            loss.backward()
        found[name] = loss.detach()
        found |= {f"{name}: {one}": whole(parameter.grad) for one, parameter in parameters.items()}
    return found


def assert_same(got, want, when, tolerance=1e-9):  # fp64 sums of a few hundred terms
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value is not None:
            assert got[name] is not None, f"{name}, {when}: no gradient"
            worst = (got[name] - value).abs().max().item()
            assert worst <= tolerance, f"{name}, {when}: differs by {worst:.2g}"


def pairs():
    """Every model under half of the ways to shard, and every way for half of the models."""
    for row, name in enumerate(MODELS):
        for column, parts in enumerate(PARTS):
            if (row + column) % 2 == 0:
                yield name, parts


@pytest.mark.parametrize(("name", "parts"), [*pairs()])
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
def test_a_sharded_model_equals_the_unsharded_one(name, parts, mesh):
    """Before training and between steps; with and without resharding after the forward."""
    flags, number = MODELS[name], list(MODELS).index(name) + list(PARTS).index(parts) // 2
    plain = make(flags, loss_chunks=(1, 3)[number % 2])
    learner = copy.deepcopy(plain)
    shard(learner, parts, mesh, reshard_after_forward=(None, True, False)[number % 3])
    if name == "reversible" and parts in PIECES:
        with pytest.raises(ValueError, match="call `fully_shard` on the stack"):
            learner.train()(IDS)
        return
    parameters = dict(learner.named_parameters())
    segments = "num_memory_slots" in flags and parts not in AROUND
    want = used(plain), trained(plain, dict(plain.named_parameters()), segments)
    for when in ("first", "again"):
        assert_same(used(learner), want[0], when)
        assert_same(trained(learner, parameters, segments), want[1], when)


@pytest.mark.parametrize(
    "parts", ["the wrapper", "sublayers", "embedding and head", "all that holds parameters"]
)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
def test_mixed_precision_of_the_policy(parts, mesh):
    """A session caches in the compute dtype; the loss is that of fp32 up to bf16 rounding."""
    plain = make({"rotary_pos_emb": True}).float()
    learner = copy.deepcopy(plain)
    shard(learner, parts, mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    kept, read_again = (
        learner.generate(IDS[:, :4], 5, temperature=0, cache_kv=cached) for cached in (True, False)
    )
    assert torch.equal(kept, read_again)
    loss = learner.train()(IDS)
    loss.backward()
    assert abs(loss.item() - plain(IDS).item()) < 0.05 * plain(IDS).item()


def test_a_gathering_outer_module_is_named(mesh):
    learner = make({"num_memory_slots": 3, "cross_attend": True, "mem_update_attn_heads": 2})
    outer = fully_shard(torch.nn.Sequential(learner), mesh=mesh)
    for call in (lambda: learner.beam_search(IDS[:, :4], 2), lambda: train_segments(learner.net, LONG)):
        with pytest.raises(ValueError, match=r"is a shard of a module around the model.*call `unshard"):
            call()
    outer.unshard()
    assert learner.generate(IDS[:, :4], 2).shape == (2, 2)


def test_weights_must_be_gathered_to_be_saved(mesh, tmp_path):
    """`save` refuses shards and explains how to gather; after a refused generation the model still trains."""
    learner = make({"rotary_pos_emb": True})
    plain = copy.deepcopy(learner)
    shard(learner, "sublayers", mesh)
    with pytest.raises(ValueError, match="`get_model_state_dict`"):
        learner.net.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="`seq_len`"):
        learner.generate(IDS, 0)
    learner.generate(IDS[:, :4], 2)
    options = StateDictOptions(full_state_dict=True)
    weights = get_model_state_dict(learner, options=options)
    fresh = AutoregressiveWrapper(flagformer.build(learner.net.flags).double())
    fresh.load_state_dict(weights)
    want = trained(plain, dict(plain.named_parameters()), False)
    assert_same(trained(fresh, dict(fresh.named_parameters()), False), want, "loaded")
    assert_same(trained(learner, dict(learner.named_parameters()), False), want, "after refusals")

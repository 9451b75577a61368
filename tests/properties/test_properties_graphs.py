"""Training compiles once for all lengths below a change of kernel: forward and backward."""

import pytest
import torch
from property_settings import TINY
from property_subject import perturb, same
from torch._dynamo.testing import CompileCounterWithBackend

import flagformer
from commit_sample import part_of
from flagformer.lab.reference import settings

LENGTHS = (9, 12, 17)
# Flags that add a bias to the blocks of local and routing heads.
SETTINGS = {
    "local heads": {"rel_pos_bias": True, "n_local_attn_heads": 2, "local_attn_window_size": 4},
    "routing heads": {"dynamic_pos_bias": True, "num_clusters": 3, "window_size": 2},
}


# With floats of modules as inputs, torch traces every graph twice.
@torch._dynamo.config.patch(specialize_float=True)
@pytest.mark.parametrize("name", part_of(SETTINGS, 2))
def test_lengths_share_their_graphs(name):
    """At most one graph in addition to that of the first length, and the gradients of eager training."""
    flags = {**settings(), **TINY, "max_seq_len": 32, "depth": 1, **SETTINGS[name]}
    torch.manual_seed(0)
    model = perturb(flagformer.build(flags).double().train())
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")  # the gradients of a graph are traced too
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    graphs = []
    for length in LENGTHS:
        ids = torch.randint(model.num_tokens, (2, length))
        found = []
        for net in (compiled, model):
            model.zero_grad()
            net(ids).square().sum().backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for got, want in zip(*found, strict=True):
            same(got, want, f"a gradient at {length} tokens", 1e-9 * (1 + want.abs().max().item()))
        graphs.append(counter.frame_count)
    assert graphs[-1] <= graphs[0] + 1, f"graphs after each length: {graphs}"

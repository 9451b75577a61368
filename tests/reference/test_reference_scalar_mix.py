"""The scalar mix of layers: its formula, and equal results of all ways to run the layers."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer.head import LayerMix

FLAGS = {"num_tokens": 11, "max_seq_len": 24, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}


def build(**flags):
    torch.manual_seed(0)
    own = {} if "layer_mix" in flags else {"scalar_mix": True}
    model = flagformer.build({**FLAGS, **own, **flags}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def ids(batch=2, length=6, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(found, wanted):
    return torch.allclose(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("normed", [False, True])
def test_formula(normed):
    model = build(scalar_mix_norm=normed).double()
    (logits, outputs) = model(ids(), return_intermediates=True)
    states = [*outputs.hiddens[:-1], model.attn_layers.final_norm(outputs.hiddens[-1])]
    assert len(states) == 5
    mixed = torch.zeros(2, 6, 16, dtype=torch.double)
    exponents = [float(one) for one in model.layer_mix.weight.detach().exp()]
    for state, exponent in zip(states, exponents):
        for row in range(2):
            for token in range(6):
                h = state[row, token]
                if normed:
                    h = (h - h.mean()) / ((h - h.mean()).square().mean() + 1e-5).sqrt()
                mixed[row, token] += model.layer_mix.scale * exponent / sum(exponents) * h
    assert torch.allclose(outputs.embeddings, mixed, atol=1e-10)
    assert torch.allclose(logits, mixed @ model.head.project.weight.t(), atol=1e-10)
    assert torch.equal(model(ids(), return_embeddings=True), outputs.embeddings)


def test_it_starts_as_the_mean():
    model = flagformer.build({**FLAGS, "scalar_mix": True}).eval()
    _, outputs = model(ids(), return_intermediates=True)
    states = [*outputs.hiddens[:-1], model.attn_layers.final_norm(outputs.hiddens[-1])]
    assert close(outputs.embeddings, sum(states) / len(states))


MODELS = {
    "plain": {},
    "tied": {"weight_tie_layers": True},
    "memory tokens": {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4},
    "parallel": {"parallel_block": True},
    "post-norm": {"pre_norm": False},
    "dual residual": {"resi_dual": True},
    "mixer": {"mixer": "gated_deltanet"},
    "reversible": {"reversible": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_and_padding(name):
    model = build(**MODELS[name])
    whole, state = model(ids()), model.init_state(2, 6)
    parts = [model(ids()[:, start:end], state=state) for start, end in ((0, 3), (3, 4), (4, 6))]
    assert close(torch.cat(parts, 1), whole)
    pad = torch.zeros(2, 3, dtype=torch.long)
    left = model(torch.cat([pad, ids()], 1), seq_start_pos=torch.tensor([3, 3]))
    assert close(left[:, 3:], whole)
    right = model(torch.cat([ids(), pad], 1), mask=torch.arange(9).expand(2, -1) < 6)
    assert close(right[:, :6], whole)


@pytest.mark.parametrize("more", [{}, {"parallel_block": True}])
@pytest.mark.parametrize(
    "flags", [{"reversible": True}, {"checkpoint": "sublayer"}, {"checkpoint": "selective"}]
)
def test_gradients_of_recomputed_layers(flags, more):
    """Those of a forward that stores all activations, as for tensors that are requested by name."""
    found = []
    for stored in (False, True):
        model = build(**flags, **more).train()
        out = model(ids(), return_intermediates=stored)
        (out[0] if stored else out).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(close(one, other) for one, other in zip(*found))


def test_memories_slots_and_streams():
    """XL memories hold the hidden states of their own steps; segments of a stream give the same logits."""
    flags = {"rotary_pos_emb": True, "max_mem_len": 8, "max_seq_len": 4}
    model, x = build(**flags), ids(2, 8)
    first, mems = model(x[:, :4], return_mems=True)
    assert len(mems.hiddens) == len(model.attn_layers.recurrent_steps) == 2
    second = model(x[:, 4:], mems=mems)
    stream = model.stream(2)
    assert close(torch.cat([stream(x[:, :3]), stream(x[:, 3:])], 1), torch.cat([first, second], 1))
    slots = build(cross_attend=True, num_memory_slots=2, mem_update_attn_heads=2, max_seq_len=4)
    first, mems = slots(x[:, :4], return_mems=True)
    stream = slots.stream(2)
    found = torch.cat([stream(x[:, :3]), stream(x[:, 3:])], 1)
    assert close(found, torch.cat([first, slots(x[:, 4:], mems=mems)], 1))


class Last(LayerMix):
    """The mean of the first and the last hidden state."""

    def __init__(self, dim, steps):
        super().__init__()
        self.steps = steps

    def forward(self, x, hiddens):
        assert len(hiddens) == self.steps
        return (hiddens[0] + x) / 2


def test_a_component_of_your_own_and_no_cost_without_one():
    model = build(layer_mix=Last)
    _, outputs = model(ids(), return_intermediates=True)
    last = model.attn_layers.final_norm(outputs.hiddens[-1])
    assert close(outputs.embeddings, (outputs.hiddens[0] + last) / 2)
    assert flagformer.build(FLAGS).mixed_steps == ()
    halves = {"enc_num_tokens": 11, "enc_max_seq_len": 8, "enc_depth": 1, "enc_heads": 2}
    halves |= {name.replace("enc_", "dec_"): value for name, value in halves.items()}
    pair = flagformer.XTransformer(dim=16, **halves, enc_scalar_mix=True, dec_layer_mix=Last)
    assert pair.encoder.mixed_steps == (0, 1)
    assert torch.isfinite(pair(ids(), ids()))

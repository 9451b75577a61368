"""Memory slots (Memformer, 2010.06891, section 3), slot by slot and head by head."""

import math

import pytest
import torch

import flagformer

DIM, HEADS, COUNT = 8, 2, 3
SIZES = {
    "num_tokens": 7, "max_seq_len": 5, "dim": DIM, "depth": 1, "heads": 2, "attn_dim_head": 4,
    "cross_attend": True, "num_memory_slots": COUNT, "mem_update_attn_heads": HEADS,
}  # fmt: skip


def slots_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({**SIZES, **flags}).double().eval().slots


def read_by(weights, slot, tokens, temperature, own_value):
    """One slot attends to itself and the tokens; heads are concatenated."""

    def linear(name, x):
        return weights[f"attention.{name}.weight"] @ x + weights[f"attention.{name}.bias"]

    keys = [linear("to_kv", one)[:DIM] for one in (slot, *tokens)]
    values = [linear("to_kv", one)[DIM:] for one in (slot, *tokens)]
    values[0] = slot if own_value else values[0]
    q, out = linear("to_q", slot), []
    for head in range(HEADS):
        part = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
        scores = [q[part] @ key[part] / math.sqrt(DIM // HEADS) / temperature for key in keys]
        total = sum(math.exp(score) for score in scores)
        out.append(sum(math.exp(s) / total * value[part] for s, value in zip(scores, values)))
    return torch.cat(out)


def written_gru(weights, slot, tokens):
    read = weights["to_out.weight"] @ read_by(weights, slot, tokens, 1.0, False) + weights["to_out.bias"]
    said = weights["gru.weight_ih"] @ read + weights["gru.bias_ih"]
    held = weights["gru.weight_hh"] @ slot + weights["gru.bias_hh"]
    (s_reset, s_keep, s_new), (h_reset, h_keep, h_new) = said.chunk(3), held.chunk(3)
    keep = torch.sigmoid(s_keep + h_keep)
    new = keep * slot + (1 - keep) * torch.tanh(s_new + torch.sigmoid(s_reset + h_reset) * h_new)
    normed = (new - new.mean()) / torch.sqrt(new.var(correction=0) + 1e-5) * weights["feedforward.0.weight"]
    inner = weights["feedforward.1.weight"] @ normed + weights["feedforward.1.bias"]
    inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    return new + weights["feedforward.3.weight"] @ inner + weights["feedforward.3.bias"]


def written_bmn(weights, slot, tokens, bias, temperature):
    size = math.sqrt(DIM)
    moved = read_by(weights, slot * size, tokens, temperature, True) / size + bias
    return moved / moved.norm()


@torch.no_grad()
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize(
    "flags", [{}, {"memory_update": "bmn"}, {"memory_update": "bmn", "memory_temperature": 0.7}]
)
def test_slots_are_written_as_in_the_paper(flags, rounds):
    memory = slots_of(**flags, num_mem_updates=rounds)
    weights = dict(memory.writer.named_parameters())
    tokens, real = torch.randn(2, 4, DIM).double(), torch.tensor([[True] * 4, [True, False, False, True]])
    before, _ = memory.read(None, 2)
    got = memory.write(before, tokens, real)
    for row in range(2):
        seen = tokens[row][real[row]]
        for place in range(COUNT):
            slot = before[row, place]
            for _ in range(rounds):
                if flags:
                    temperature = flags.get("memory_temperature", 0.25)
                    slot = written_bmn(weights, slot, seen, weights["bias"][place], temperature)
                else:
                    slot = written_gru(weights, slot, seen)
            assert (got[row, place] - slot).abs().max() < 1e-12


@torch.no_grad()
def test_bmn_slots_start_as_their_bias_with_the_norm_of_tokens():
    memory = slots_of(memory_update="bmn")
    start, _ = memory.read(None, 1)
    bias = memory.writer.bias
    assert (start[0] - bias / bias.norm(dim=-1, keepdim=True)).abs().max() < 1e-12
    assert (memory.as_context(start) - start * math.sqrt(DIM)).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("update", ["gru", "bmn"])
def test_a_slot_does_not_attend_to_another(update):
    memory = slots_of(memory_update=update)
    tokens = torch.randn(1, 4, DIM).double()
    before = memory.read(None, 1)[0].clone()
    other = before.clone()
    other[0, 1] += 1.0
    one, two = memory.write(before, tokens, None), memory.write(other, tokens, None)
    assert torch.equal(one[0, 0], two[0, 0])
    assert torch.equal(one[0, 2], two[0, 2])
    assert (one[0, 1] - two[0, 1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("update", ["gru", "bmn"])
def test_layers_attend_to_slots_as_a_context(update):
    """The same model without slots, with the slots as context."""
    torch.manual_seed(0)
    model = flagformer.build({**SIZES, "memory_update": update}).double().eval()
    plain = flagformer.build({n: v for n, v in SIZES.items() if not n.startswith(("num_mem", "mem_"))})
    plain = plain.double().eval()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("slots.")})
    ids, slots = torch.randint(7, (2, 5)), torch.randn(2, COUNT, DIM).double()
    want = plain(ids, context=model.slots.as_context(slots))
    assert (model(ids, mems=slots) - want).abs().max() < 1e-12

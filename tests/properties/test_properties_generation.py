"""Greedy generation of every setting: cached equals uncached, token by token, and the cache is not
reallocated."""

from itertools import product

import pytest
import torch
from property_sample import FEW, calls_of, grouped
from property_settings import TINY, one_block
from property_subject import TIGHT, perturb, refusal
from test_properties_singles import SINGLES

import flagformer
from commit_sample import part_of
from flagformer import AutoregressiveWrapper
from flagformer.flags import CATALOGUE
from flagformer.flags.names import is_per_layer
from flagformer.wrappers.encoder_decoder import DEC, ENC, FIXED_BY_MODEL

NEW = 14
# Rows of different lengths are padded on the left.
PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]
# A length for prompt and new tokens with absolute positions; for others a window starts in the middle.
ROOM, WINDOW = 24, 8
NO_LOGIT_PER_TOKEN = {"return_only_embed", "logits_dim (tuned)"}
GENERATING = [name for name in SINGLES if name not in NO_LOGIT_PER_TOKEN]
PARTS = 4
# Orders with as many sublayers as a decoder with cross-attention has.
ORDERS = {
    "custom_layers": ("a", "c", "f", "a", "f"),
    "layers_execute_order": (0, 1, 2, 3, 4, 5, 1, 2),
    "par_ratio": 3,
}


def decoder_of(flags):
    """A perturbed model in fp64, with a window if its flags allow one."""
    torch.manual_seed(1)
    model = flagformer.build({**flags, "max_seq_len": WINDOW})
    if model.absolute_positions or model.num_memory_slots or model.attn_layers.has_mixers:
        model = flagformer.build({**flags, "max_seq_len": ROOM})
    return perturb(model.double()).eval()


def generates(flags, kind):
    """(the net that gives the logits, a call of `generate` with `cache_kv`) of flags in a model kind."""
    if kind == "xtransformer":
        return encoder_decoder(flags)
    net = decoder_of({**flags, "model": kind})
    side = {}
    if net.attn_layers.has_cross and not net.num_memory_slots:
        dims = net.attn_layers.dims
        side["context"] = torch.randn(2, 5, dims.dim_context or dims.dim, dtype=torch.float64)
        side["context_mask"] = torch.arange(5) < torch.tensor([[5], [2]])
    if kind == "prefix_decoder":
        side["prefix_attn_len"] = torch.tensor([3, 2])
    wrapper = AutoregressiveWrapper(net)
    return net, lambda cache_kv: wrapper.generate(PROMPTS, NEW, temperature=0, cache_kv=cache_kv, **side)


def encoder_decoder(flags):
    """The flags in the decoder of an XTransformer."""
    own = {"model", *FIXED_BY_MODEL[DEC]}
    chosen = {key: value for key, value in flags.items() if key not in own}
    chosen |= {key: value for key, value in ORDERS.items() if key in chosen}
    chosen |= {
        key: tuple(value[index] for index in (0, 1, 1, 2, 3, 3))  # of a, c, f
        for key, value in chosen.items()
        if is_per_layer(key, value, CATALOGUE) and len(value) == 4
    }
    torch.manual_seed(1)
    flags = {"model": "xtransformer", "dim": TINY["dim"]}
    for prefix, half in ((ENC, {**TINY, "depth": 1}), (DEC, {**chosen, "max_seq_len": ROOM})):
        flags |= {prefix + key: value for key, value in half.items() if key != "dim"}
    model = perturb(flagformer.build(flags).double()).eval()
    source, mask = torch.arange(14).view(2, 7) % 11, torch.arange(7) < torch.tensor([[7], [4]])

    def generate(cache_kv):
        return model.generate(source, PROMPTS, NEW, mask, temperature=0, cache_kv=cache_kv)

    return model.decoder.net, generate


def watched(net, generate, cache_kv):
    """Tokens, the logits of each step, and the memory of the decode state after each."""
    logits, memory, states = [], [], []
    make = net.init_state

    def made(*args, **keywords):
        states.append(make(*args, **keywords))
        return states[-1]

    def note(module, args, out):
        logits.append(out[:, -1].clone())
        memory.append(storages(states))

    hook, net.init_state = net.head.register_forward_hook(note), made
    try:
        return generate(cache_kv), torch.stack(logits, dim=1), memory
    finally:
        hook.remove()
        del net.init_state


def storages(value):
    """(address, bytes) of every storage of a state."""
    if isinstance(value, torch.Tensor):
        return {(value.untyped_storage().data_ptr(), value.untyped_storage().nbytes())}
    if isinstance(value, dict):
        value = tuple(value.values())
    elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
        value = tuple(vars(value).values())
    return set().union(*map(storages, value)) if isinstance(value, (list, tuple)) else set()


@pytest.mark.parametrize("name", sorted(NO_LOGIT_PER_TOKEN))
def test_models_without_a_logit_for_each_token_do_not_generate(name):
    with pytest.raises(ValueError, match=name.split()[0]):
        generates({**SINGLES[name], **TINY}, "decoder")


@pytest.mark.parametrize("name", GENERATING)
def test_greedy_generation_is_the_same_with_and_without_a_state(name):
    generates_equally({**SINGLES[name], **TINY}, "decoder")


@pytest.mark.parametrize(
    ("kind", "part"), part_of(product(["prefix_decoder", "xtransformer"], range(PARTS)), 2)
)
def test_other_kinds_generate_the_same_with_and_without_a_state(kind, part):
    """A few settings in one model; the single settings test that only causal requirements are refused."""
    builds = {}
    for name in GENERATING[part::PARTS]:
        model = {"model": kind} if kind == "prefix_decoder" else {"cross_attend": True}
        flags = one_block({**SINGLES[name], **TINY})
        if kind == "xtransformer" or refusal({**flags, **model}) is None:
            builds[name] = {**flags, **model}
    for members, flags in grouped(builds, FEW, is_alone):
        try:
            generates_equally({name: value for name, value in flags.items() if name != "model"}, kind)
        except Exception as error:
            raise AssertionError(f"{', '.join(members)} in a {kind}") from error


def is_alone(flags):
    """What settings of one model have in common; those with values by layer or an order are alone."""
    ordered = set(ORDERS) & set(flags) or any(is_per_layer(*item, CATALOGUE) for item in flags.items())
    return id(flags) if ordered or refusal(flags) else calls_of(flags)


def generates_equally(flags, kind):
    net, generate = generates(flags, kind)
    tokens, logits, memory = watched(net, generate, True)
    again, plain, _ = watched(net, generate, False)
    assert tokens.shape == (2, NEW)
    gap = plain.topk(2, dim=-1).values.diff(dim=-1).abs().min()
    assert gap > TIGHT, "the logits tie: use another seed"
    assert (logits - plain).abs().max() <= TIGHT
    assert torch.equal(tokens, again)
    assert len(memory) == NEW
    assert memory[0], "no decode state was made"
    assert all(one == memory[0] for one in memory), "the state grew after the prompt"

"""Ids of every integer type: int32 equals int64, others are refused by name, in every loss."""

import pytest
import torch

import flagformer
from flagformer import AutoregressiveWrapper, Memformer, XLAutoregressiveWrapper, XTransformer

LM = {"num_tokens": 11, "max_seq_len": 8, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
SLOTS = {"num_memory_slots": 2, "cross_attend": True}
HALF = {"num_tokens": 11, "max_seq_len": 16, "depth": 1, "heads": 2}


def ids():
    return torch.randint(11, (2, 13), generator=torch.Generator().manual_seed(3))


def halves():
    return {"dim": 16, **{f"{half}_{name}": value for half in ("enc", "dec") for name, value in HALF.items()}}


def lm(**flags):
    torch.manual_seed(1)
    return flagformer.build({**LM, **flags})


def of_replay(x):
    torch.manual_seed(1)
    return flagformer.memory_replay_backprop(Memformer(num_memory_slots=2, **halves()), x, x)


def of_routing(x):
    torch.manual_seed(1)
    sizes = {"num_tokens": 11, "depth": 1, "max_seq_len": 16, "window_size": 4, "heads": 2}
    flags = {f"{half}_{name}": value for half in ("enc", "dec") for name, value in sizes.items()}
    return flagformer.RoutingTransformerEncDec(dim=16, **flags)(x, x, return_loss=True)[0]


def of_memformer(x):
    torch.manual_seed(1)
    return Memformer(num_memory_slots=2, **halves())(x, x).dec_out


def of_halves(x):
    torch.manual_seed(1)
    return XTransformer(**halves())(x, x)


def of_lm(x):
    torch.manual_seed(1)
    sizes = {"num_tokens": 11, "dim": 16, "depth": 1, "max_seq_len": 16, "window_size": 4, "heads": 2}
    return flagformer.RoutingTransformerLM(**sizes, causal=True).loss(x)


LOSSES = {
    "next tokens": lambda x: AutoregressiveWrapper(lm(max_seq_len=16))(x),
    "next tokens in chunks": lambda x: AutoregressiveWrapper(lm(max_seq_len=16), loss_chunks=3)(x),
    "segments with memories": lambda x: XLAutoregressiveWrapper(lm(max_mem_len=8, rotary_pos_emb=True))(x),
    "segments with slots": lambda x: flagformer.train_segments(lm(**SLOTS), x)[0],
    "encoder-decoder": of_halves,
    "memformer": of_memformer,
    "memory replay": of_replay,
    "routing": of_lm,
    "routing pair": of_routing,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_int32_gives_the_loss_of_int64(loss):
    assert torch.equal(LOSSES[loss](ids().int()), LOSSES[loss](ids()))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8, torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("loss", LOSSES)
def test_other_types_are_refused_by_name(loss, dtype):
    with pytest.raises(ValueError, match=f"must be token ids .* but is {dtype} of shape"):
        LOSSES[loss](ids().clamp(max=1).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_prompts_of_every_integer_type(dtype):
    wrapper = AutoregressiveWrapper(lm(max_seq_len=32))
    want = wrapper.generate(ids(), 4, temperature=0)
    assert torch.equal(wrapper.generate(ids().to(dtype), 4, temperature=0), want)


def test_other_models_name_the_method_to_call():
    sizes = {"num_tokens": 11, "dim": 16, "depth": 1, "max_seq_len": 16, "window_size": 4, "heads": 2}
    routing = flagformer.RoutingTransformerLM(**sizes, causal=True)
    with pytest.raises(ValueError, match=r"but is RoutingTransformerLM; give its `\.net`.* or call its own"):
        AutoregressiveWrapper(routing)
    with pytest.raises(ValueError, match="but is XTransformer; call its own `generate`"):
        AutoregressiveWrapper(XTransformer(**halves()))
    with pytest.raises(ValueError, match=r"but is Linear$"):
        AutoregressiveWrapper(torch.nn.Linear(2, 2))

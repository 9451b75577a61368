"""The slots of the model take components by name, in every wrapper, also by import path."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import flagformer
from flagformer import FlagError, Spec
from flagformer.embedding import Memory, TokenScale
from flagformer.flow import InsertionPattern
from flagformer.head import Head
from flagformer.memory import SlotMemory
from flagformer.memory.recurrence import SegmentRecurrence
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.position import AbsolutePosition

FLAGS = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}


def ids(length=6):
    return torch.arange(2 * length).view(2, length) % 11


class TwoLayers(Head):
    """Logits by two projections."""

    def __init__(self, dim, num_tokens, *, inner=5):
        super().__init__()
        self.first, self.second = nn.Linear(dim, inner), nn.Linear(inner, num_tokens)

    def forward(self, x, vectors):
        return self.second(self.first(x).relu())


class PlainHead(nn.Module):
    """A head without the base class, of products with the embedding."""

    def __init__(self, dim, num_tokens):
        super().__init__()

    def forward(self, x, vectors):
        return x @ vectors(x.device).t()


class Waves(AbsolutePosition):
    limit = None

    def __init__(self, dim, max_seq_len):
        super().__init__()
        self.width = dim

    def forward(self, positions):
        return (positions[..., None] * torch.arange(1, self.width + 1) / 7).sin()


class ByDimension(TokenScale):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, width))

    def forward(self, x):
        return x * self.weight


class OneToken(Memory):
    """One vector of ones in front of each row."""

    def __init__(self, dim):
        super().__init__()
        self.pattern, self.dim = InsertionPattern(1), dim

    def forward(self, like):
        return like.new_ones(1, self.dim)


class Halved(SegmentRecurrence):
    """Hidden states of earlier segments, times one half."""

    def __init__(self, dim, kinds):
        super().__init__(dim, kinds, most=4)

    def write(self, mems, hiddens, layout):
        new = super().write(mems, hiddens, layout)
        return replace(new, hiddens=tuple(0.5 * hidden for hidden in new.hiddens))


class Sums(SlotMemory):
    """One slot: the sum of the tokens of all earlier segments."""

    def __init__(self, dim):
        super().__init__()
        self.count, self.dim = 1, dim

    def read(self, mems, batch):
        return (torch.ones(batch, 1, self.dim) if mems is None else mems.slots), None

    def as_context(self, slots):
        return slots

    def write(self, slots, tokens, valid):
        return slots + tokens.sum(1, keepdim=True)


def test_a_head():
    model = flagformer.TransformerWrapper(
        num_tokens=11,
        max_seq_len=16,
        attn_layers=flagformer.Decoder(dim=16, depth=1, heads=2),
        head=TwoLayers,
    ).eval()
    logits, x = model(ids(), return_logits_and_embeddings=True)
    weights = model.head
    wanted = torch.relu(x @ weights.first.weight.t() + weights.first.bias) @ weights.second.weight.t()
    assert torch.allclose(logits, wanted + weights.second.bias, atol=1e-6)
    assert model.logits_dim == 11
    assert "head: TwoLayers()" in model.explain()


@pytest.mark.parametrize("head", [PlainHead, Spec(TwoLayers, {"inner": 3}), TwoLayers(16, 11)])
def test_losses_chunks_and_generation_use_the_head(head):
    model = flagformer.build({**FLAGS, "head": head}).eval()
    whole = flagformer.AutoregressiveWrapper(model)
    chunked = flagformer.AutoregressiveWrapper(model, loss_chunks=3)
    assert torch.allclose(whole(ids()), chunked(ids()), atol=1e-6)
    new = whole.generate(ids(4), 5, temperature=0.0)
    assert torch.equal(new, whole.generate(ids(4), 5, temperature=0.0, cache_kv=False))
    assert torch.equal(new[:, 0], model(ids(4))[:, -1].argmax(-1))


def test_embeddings_are_scaled_summed_and_normed():
    given = {"token_scale": ByDimension, "absolute": Waves, "embedding_norm": Spec(RMSNorm, {"eps": 0.1})}
    model = flagformer.build({**FLAGS, **given}).eval()
    seen = []
    model.attn_layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(ids())
    x = model.token_emb.weight[ids()] * torch.linspace(0.5, 2.0, 16)
    x = x + (torch.arange(6)[:, None] * torch.arange(1, 17) / 7).sin()
    wanted = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    assert torch.allclose(seen[0], wanted, atol=1e-5)
    assert not model.absolute_positions
    model(ids(20))


def test_memory_tokens():
    model = flagformer.build({**FLAGS, "memory": OneToken}).eval()
    seen = []
    model.attn_layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    whole = model(ids())
    assert whole.shape == (2, 6, 11)
    assert torch.equal(seen[0][:, 0], torch.ones(2, 16))
    state = model.init_state(2, 6)
    parts = [model(ids()[:, i : i + 2], state=state) for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_recurrence_and_slots():
    relative = {**FLAGS, "rotary_pos_emb": True}
    model, plain = (flagformer.build({**relative, **more}).eval() for more in (
        {"recurrence": Halved}, {"max_mem_len": 4}))  # fmt: skip
    plain.load_state_dict(model.state_dict())
    assert model.max_mem_len == 4
    _, mems = model(ids(), return_mems=True)
    _, others = plain(ids(), return_mems=True)
    assert all(torch.equal(mine, 0.5 * its) for mine, its in zip(mems.hiddens, others.hiddens))
    wanted = plain(ids(), mems=replace(others, hiddens=mems.hiddens))
    assert torch.equal(model(ids(), mems=mems), wanted)
    model = flagformer.build({**FLAGS, "cross_attend": True, "slots": Sums}).eval()
    assert model.num_memory_slots == 1
    first, mems = model(ids(), return_mems=True)
    assert not torch.allclose(model(ids(), mems=mems), first)


def test_both_halves_of_an_encoder_decoder():
    halves = {
        f"{half}{name}": value
        for half in ("enc_", "dec_")
        for name, value in {"num_tokens": 11, "max_seq_len": 16, "depth": 1, "heads": 2}.items()
    }
    own = {"enc_absolute": Waves, "dec_head": TwoLayers, "dec_token_scale": ByDimension}
    model = flagformer.XTransformer(dim=16, **halves, **own)
    assert type(model.encoder.pos_emb) is Waves
    assert type(model.decoder.net.head) is TwoLayers
    assert model(ids(), ids()).isfinite()
    module = ByDimension(16)
    refusals = {
        "enc_head": ({"enc_head": TwoLayers}, "reads the encoder's embeddings"),
        "dec_recurrence": ({"dec_recurrence": Halved}, "is read whole"),
        "dec_token_scale": (
            {"enc_token_scale": module, "dec_token_scale": module},
            "is the module of `enc_token_scale`, and both halves would share",
        ),
        "dec_norm": ({"enc_norm": module, "dec_norm": module}, "is the module of `enc_norm`"),
    }
    for name, (flags, text) in refusals.items():
        with pytest.raises(FlagError) as error:
            flagformer.XTransformer(dim=16, **halves, **flags)
        assert any(one.flag == name and text in one.message for one in error.value.findings)
    slots = {**halves, "num_memory_slots": 2, "mem_update_attn_heads": 2}
    assert flagformer.Memformer(dim=16, **slots, dec_head=PlainHead)(ids(), ids())[2].isfinite()
    for name in ("enc_slots", "dec_slots", "enc_head", "dec_recurrence"):
        with pytest.raises(FlagError, match=f"`{name}` cannot be given, because"):
            flagformer.Memformer(dim=16, **slots, **{name: Sums})


def test_routing_models():
    sizes = {"num_tokens": 11, "dim": 16, "depth": 1, "max_seq_len": 16, "window_size": 4, "heads": 2}
    model = flagformer.RoutingTransformerLM(**sizes, dim_head=8, causal=True, head=TwoLayers, norm=RMSNorm)
    assert type(model.net.head) is TwoLayers
    assert model(ids(16))[0].shape == (2, 16, 11)
    sizes.pop("num_tokens")
    with pytest.raises(FlagError, match="`head` is for RoutingTransformerLM"):
        flagformer.RoutingTransformer(**sizes, head=TwoLayers)
    del sizes["dim"]
    halves = {half + name: value for half in ("enc_", "dec_") for name, value in sizes.items()}
    halves |= {"enc_num_tokens": 11, "dec_num_tokens": 11}
    with pytest.raises(FlagError, match="`enc_head` cannot be given"):
        flagformer.RoutingTransformerEncDec(dim=16, **halves, enc_head=TwoLayers)


def test_one_module_fills_one_slot():
    module = RMSNorm(16)
    with pytest.raises(FlagError, match="`embedding_norm` is one module that 2 slots would share"):
        flagformer.build({**FLAGS, "embedding_norm": module, "token_scale": module})
    layers = flagformer.Decoder(dim=16, depth=1, feedforward=Spec(Doubling))
    with pytest.raises(FlagError, match="`token_scale` is one module that 2 slots would share"):
        flagformer.TransformerWrapper(
            num_tokens=11, max_seq_len=16, attn_layers=layers, token_scale=layers.sublayers[1].fn
        )


class Doubling(nn.Module):
    def __init__(self, dims, activation):
        super().__init__()
        self.weight = nn.Parameter(torch.full((), 2.0))

    def forward(self, x, side=None):
        return self.weight * x


FILLED = {
    "head": (TwoLayers, {"tie_embedding": True}),
    "absolute": (Waves, {"scaled_sinu_pos_emb": True}),
    "embedding_norm": (RMSNorm, {"post_emb_norm": True}),
    "token_scale": (ByDimension, {"embedding_scale": 2.0}),
    "memory": (OneToken, {"num_memory_tokens": 2}),
    "recurrence": (Halved, {"max_mem_len": 2}),
}


@pytest.mark.parametrize("slot", FILLED)
def test_flags_of_a_filled_slot_have_no_effect(slot):
    own, flags = FILLED[slot]
    with pytest.raises(FlagError, match=f"has no effect here, because `{slot}` is set to a component"):
        flagformer.build({**FLAGS, slot: own, **flags})


def test_absolute_positions_and_layers_without():
    with pytest.raises(FlagError, match="`absolute` and `disable_abs_pos_emb=True` cannot be combined"):
        flagformer.build({**FLAGS, "absolute": Waves, "disable_abs_pos_emb": True})


def test_a_recurrence_of_your_own_needs_layers_that_read_it():
    mixers = {**FLAGS, "mixer": "gated_deltanet"}
    with pytest.raises(FlagError, match="`recurrence` and `mixer` cannot be combined"):
        flagformer.build({**mixers, "recurrence": Halved})
    with pytest.raises(FlagError, match="cannot be combined, because memory tokens would come between"):
        flagformer.build({**FLAGS, "memory": OneToken, "max_mem_len": 4, "rotary_pos_emb": True})


SOURCE = """\
from torch import nn
from flagformer.embedding import TokenScale


class Mine(nn.Module):
    def __init__(self, dim, num_tokens, *, inner=5):
        super().__init__()
        self.inner = nn.Linear(dim, inner)
        self.outer = nn.Linear(inner, num_tokens)

    def forward(self, x, vectors):
        return self.outer(self.inner(x).tanh())
"""


@pytest.mark.parametrize("value", ["ownhead:Mine", {"class": "ownhead:Mine", "inner": 3}])
def test_saved_by_path(value, tmp_path, monkeypatch):
    (tmp_path / "ownhead.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    model = flagformer.build({**FLAGS, "head": value, "embedding_norm": "flagformer.norm.rmsnorm:RMSNorm"})
    model.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "flags.json").read_text())["flags"]["head"] == value
    back = flagformer.load(tmp_path / "saved", allow=["ownhead", "flagformer"])
    assert torch.equal(back.eval()(ids()), model.eval()(ids()))
    assert back.flags == model.flags
    with pytest.raises(ValueError, match=r"`head` is .* whose module is not allowed"):
        flagformer.load(tmp_path / "saved", allow=["flagformer"])
    del sys.modules["ownhead"]


def test_a_class_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="`head` was given as a class or module"):
        flagformer.build({**FLAGS, "head": TwoLayers}).save(tmp_path / "saved")

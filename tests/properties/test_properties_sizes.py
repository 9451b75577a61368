"""Sizes beyond any machine are refused by name before any allocation: each size, each model."""

import pytest
import torch
from property_settings import TINY, tunings
from torch.overrides import TorchFunctionMode

import flagformer
from flagformer import FlagError
from flagformer.flags.values import LARGEST
from flagformer.ops.memory import GIB
from flagformer.stack import sizes

HUGE = 10**9
# A size within torch's integers, one whose bytes overflow, and two whose sizes overflow.
ABSURD = (HUGE, LARGEST - 1, 10**12, 2**63 - 1)
LAYERS = {"dim": 16, "depth": 1, "heads": 4, "attn_dim_head": 8}
HALF = {"num_tokens": 11, "max_seq_len": 16, "depth": 1, "heads": 4, "attn_dim_head": 8}
BOTH = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in HALF.items()}
MODELS = {
    "decoder": {**TINY, "depth": 1},
    "xtransformer": {"model": "xtransformer", "dim": 16, **BOTH},
    "memformer": {"model": "memformer", "dim": 16, "num_memory_slots": 3, **BOTH},
    "vit": {"model": "vit", "image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 3, **LAYERS},
}
# The dimension of a flag's tensor that is the flag's value, in addition to its selector.
WITH = {"num_clusters": {"window_size": 2}, "context_num_clusters": {"window_size": 2, "num_clusters": 2}}


def size_flags():
    """name -> complete flags with a small size, for every integer flag of the catalogue."""
    found = dict.fromkeys(TINY, MODELS["decoder"])
    for name, flags in tunings().items():
        if " of " not in name and isinstance(flags[name], int) and not isinstance(flags[name], bool):
            found[name] = {**MODELS["decoder"], **WITH.get(name, {}), **flags}
    found["embed_num_tokens"] = MODELS["decoder"]
    return found


def refusal(make):
    """The text of the FlagError; None if it builds."""
    try:
        make()
    except FlagError as error:
        return str(error)
    return None


class Watch(TorchFunctionMode):
    """Bytes of the largest allocated tensor: of those that `torch.empty` makes, or of all."""

    def __init__(self, every=False):
        super().__init__()
        self.every, self.largest = every, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = self.every or func is torch.empty
        if made and isinstance(out, torch.Tensor) and out.device.type != "meta":
            self.largest = max(self.largest, out.nbytes)
        return out


@pytest.fixture(autouse=True)
def nothing_large_is_made(monkeypatch):
    """A machine of 8 GiB on which every allocated tensor is small."""
    monkeypatch.setattr(sizes, "free_on", lambda device: 8 * GIB)
    monkeypatch.setattr(sizes, "SMALL", 2**20)
    with Watch() as watch:
        yield
    assert watch.largest <= 2**20


@torch.no_grad()
def makes_no_large_tensor(model):
    """In a forward: the size is a bound on attended or kept tokens, or the like."""
    context = {"context": torch.zeros(1, 3, 16)} if model.attn_layers.has_cross else {}
    with Watch(every=True) as watch:
        model(torch.zeros(1, 4, dtype=torch.long), **context)
    assert watch.largest <= 2**20


@pytest.mark.parametrize("name", size_flags())
def test_absurd_size_is_refused_by_name(name):
    for size in ABSURD:
        flags = {**size_flags()[name], name: {"kind": size} if name == "embed_num_tokens" else size}
        built = []
        found = refusal(lambda flags=flags, built=built: built.append(flagformer.build(flags)))
        if found is None:
            makes_no_large_tensor(built[0])
        else:
            assert f"`{name}`" in found
            assert str(size) in found


def whole_models():
    """Each size of each other model, by its flag there."""
    for kind in ("xtransformer", "memformer", "vit"):
        for name, value in MODELS[kind].items():
            if isinstance(value, int) and not name.endswith("depth"):
                yield kind, name
    yield from (("vit", "num_register_tokens"), ("xtransformer", "dec_emb_dim"))


@pytest.mark.parametrize(("kind", "name"), list(whole_models()))
def test_absurd_size_of_a_whole_model_is_refused_by_its_flag(kind, name):
    for size in ABSURD:
        found = refusal(lambda size=size: flagformer.build({**MODELS[kind], name: size}))
        # T5 positions of a Memformer are unbounded; patches must divide an image
        if found is None:
            assert (kind, name) in {("memformer", "enc_max_seq_len"), ("memformer", "dec_max_seq_len")}
        else:
            assert f"`{name}`" in found
            assert str(size) in found


ROUTING = {"dim": 16, "depth": 1, "max_seq_len": 16, "heads": 4, "dim_head": 8, "window_size": 4}


def routing_pair(**flags):
    both = {"num_tokens": 11, "depth": 1, "max_seq_len": 256, "heads": 4}
    both = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in both.items()}
    return flagformer.RoutingTransformerEncDec(**{"dim": 16, **both, **flags})


@pytest.mark.parametrize(
    "name", ["dim", "heads", "dim_head", "num_clusters", "num_mem_kv", "moe_num_experts"]
)
def test_absurd_size_of_a_routing_model_is_refused_by_its_flag(name):
    extra = {"moe_layers": (1,)} if name.startswith("moe") else {}
    for size in ABSURD:
        flags = {**ROUTING, **extra, name: size}
        for make in (flagformer.RoutingTransformer, flagformer.RoutingTransformerLM):
            tokens = {"num_tokens": 11} if make is flagformer.RoutingTransformerLM else {}
            found = refusal(lambda make=make, flags={**flags, **tokens}: make(**flags))
            assert f"`{name}`" in found
            assert str(size) in found
        half = {f"dec_{key}": value for key, value in extra.items()}
        typed = name if name == "dim" else f"dec_{name}"
        found = refusal(lambda half={**half, typed: size}: routing_pair(**half))
        assert f"`{typed}`" in found
        assert str(size) in found


def test_custom_constructors_are_covered_too():
    class Own(flagformer.Decoder):
        def __init__(self, width):
            super().__init__(dim=width, depth=1, heads=1)

    layers = flagformer.Decoder(**LAYERS)
    for name, make in {
        "dim": lambda: flagformer.Encoder(**{**LAYERS, "dim": HUGE}),
        "heads": lambda: flagformer.AttentionLayers(**{**LAYERS, "heads": HUGE}, alibi_pos_bias=True),
        "width": lambda: Own(width=HUGE),
        "num_tokens": lambda: flagformer.TransformerWrapper(
            num_tokens=HUGE, max_seq_len=8, attn_layers=layers
        ),
        "image_size": lambda: flagformer.ViTransformerWrapper(
            image_size=HUGE, patch_size=4, attn_layers=flagformer.Encoder(**LAYERS)
        ),
    }.items():
        assert f"`{name}` is {HUGE}" in refusal(make)


def test_refusal_states_required_and_available_memory():
    with pytest.raises(FlagError) as caught:
        flagformer.build({**MODELS["decoder"], "num_tokens": HUGE})
    (finding,) = caught.value.findings
    assert finding.flag == "num_tokens"
    # an input and an output vector for each token, in fp32
    assert f"would need {HUGE * (16 + 16) * 4 / GIB:,.1f} GiB, and 8.0 GiB are free" in finding.message


def test_meta_exceeds_memory_but_not_the_size_of_a_tensor():
    llama = {"num_tokens": 32_000, "max_seq_len": 4096, "dim": 8192, "depth": 80, "heads": 64}
    with torch.device("meta"):
        model = flagformer.build({**llama, "attn_dim_head": 128, "rotary_pos_emb": True, "ff_mult": 3.5})
        assert model.num_params() > 50e9
        for flags in ({"dim": LARGEST - 2}, {"heads": LARGEST - 1, "dim": 1, "alibi_pos_bias": True}):
            assert f"`{next(iter(flags))}` is" in refusal(
                lambda flags=flags: flagformer.build({**MODELS["decoder"], **flags})
            )
    assert "would need" in refusal(lambda: flagformer.build(llama))


def test_counting_changes_no_weight(monkeypatch):
    flags = {**MODELS["decoder"], "rotary_pos_emb": True, "attn_talking_heads": True}
    states = []
    for small in (0, 2**30):
        monkeypatch.setattr(sizes, "SMALL", small)
        torch.manual_seed(0)
        states.append(flagformer.build(flags).state_dict() | {"next": torch.rand(1)})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

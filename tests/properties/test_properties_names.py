"""Every flag of every wrapper: an error names it in the user's spelling, with its prefix."""

import pytest
import torch
from property_settings import TINY

import flagformer
from flagformer import CATALOGUE, FlagError
from flagformer.flags import LAYER_SCOPES, MODEL_SCOPES
from flagformer.flags.flag import read_params
from flagformer.flags.routing_names import MODEL_ONLY, OWN, RENAMED, TRANSLATED
from flagformer.wrappers.routing_pair import DECIDED

ROUTING = {"num_tokens": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 16, "window_size": 4}
VECTORS = {name: value for name, value in ROUTING.items() if name != "num_tokens"}


def halves(flags):
    return {p + name: value for p in ("enc_", "dec_") for name, value in flags.items() if name != "dim"}


def flags_of(scopes):
    return {*CATALOGUE.names(scopes), *(f"cross_{name}" for name in CATALOGUE.crossed())}


def whole(cls):
    """The flags of a model of its own kind, those of its halves with their prefix."""
    found = {param.flag.name for param in read_params(cls)}
    for part in cls.parts:
        found |= {part.prefix + name for name in flags_of(part.scopes) - part.decided}
    return found


def kind(name):
    return lambda **flags: flagformer.build({"model": name, **flags})


OF_ROUTING = flags_of(MODEL_SCOPES) | {*RENAMED, *OWN}
DOUBLE = {*RENAMED.values(), *TRANSLATED.values()}  # second names of the same flags
# how a wrapper is called, the flags it needs, and every flag it accepts
WRAPPERS = {
    "decoder": (kind("decoder"), {**TINY, "depth": 1}, flags_of(MODEL_SCOPES) - {"causal"}),
    "Decoder": (flagformer.Decoder, {"dim": 16, "depth": 1}, flags_of(LAYER_SCOPES) - {"causal"}),
    "XTransformer": (
        flagformer.XTransformer,
        {"dim": 16, **halves({**TINY, "depth": 1})},
        whole(flagformer.XTransformer),
    ),
    "Memformer": (
        flagformer.Memformer,
        {"dim": 16, "num_memory_slots": 2, **halves({**TINY, "depth": 1})},
        whole(flagformer.Memformer),
    ),
    "vit": (
        kind("vit"),
        {"image_size": 4, "patch_size": 2, "dim": 16, "depth": 1},
        whole(flagformer.ViTransformerWrapper),
    ),
    "RoutingTransformer": (flagformer.RoutingTransformer, VECTORS, OF_ROUTING - set(MODEL_ONLY) - DOUBLE),
    "RoutingTransformerLM": (flagformer.RoutingTransformerLM, ROUTING, OF_ROUTING - DOUBLE),
    "RoutingTransformerEncDec": (
        flagformer.RoutingTransformerEncDec,
        {"dim": 16, **halves(ROUTING)},
        {p + name for p in ("enc_", "dec_") for name in OF_ROUTING - DOUBLE - set(DECIDED[p])}
        | {"dim", "ignore_index", "pad_value"},
    ),
}  # fmt: skip
# checked when layers and decoder are built, which a wrong size prevents: tested one by one below
LATER = {"ff_activation", "enc_ff_activation", "dec_ff_activation", "pad_value"}


class Odd:
    """A value that no flag accepts."""

    def __repr__(self):
        return "Odd()"


def findings(build, **flags):
    with pytest.raises(FlagError) as error:
        build(**flags)
    return {finding.flag: finding.message for finding in error.value.findings}


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_flag_with_a_wrong_value_is_named_as_given(name):
    """All of them in one error, and no other name."""
    build, base, names = WRAPPERS[name]
    found = findings(build, **base, **dict.fromkeys(names - set(base), Odd()))
    assert len(names) > 100
    late = LATER if name.startswith("Routing") else set()
    assert sorted(names - set(base) - set(found) - late) == []
    assert all(f"`{flag.split('=')[0]}" in text for flag, text in found.items())
    typed = {flag.split("=")[0] for flag in found}
    assert typed <= names | set(base), typed - names - set(base)


SIZES = {"dim", "heads", "depth", "max_seq_len", "num_tokens", "window_size", "dim_head", "attn_dim_head"}
SPOILT = (Odd(), "x", -1, True, 1.5, 2**63, 10**12, float("nan"), [], {}, b"x")


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "decoder"])
def test_every_wrong_size_is_named(name):
    """One at a time, as one size is often derived from another: the error names the given one."""
    build, base, names = WRAPPERS[name]
    for flag in sorted(one for one in names if one.removeprefix("enc_").removeprefix("dec_") in SIZES):
        for value in SPOILT:
            found = findings(build, **{**base, flag: value})
            assert set(found) == {flag}, (flag, value, found)
            assert found[flag].startswith(f"`{flag}` ")


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("XTransformer", "dec_logits_dim", 5),
        ("XTransformer", "pad_value", 11),
        ("Memformer", "dec_logits_dim", 5),
        ("Memformer", "pad_value", 10**6),
        ("RoutingTransformerEncDec", "dec_logits_dim", 5),
        ("RoutingTransformerEncDec", "pad_value", 11),
        ("RoutingTransformerEncDec", "pad_value", "x"),
        ("RoutingTransformerEncDec", "ignore_index", "x"),
        ("RoutingTransformerEncDec", "dec_return_only_embed", True),
        ("RoutingTransformerEncDec", "dec_cross_attend", True),
        ("RoutingTransformerLM", "moe_layers", (9,)),
        ("RoutingTransformerLM", "moe_layers", "x"),
        ("RoutingTransformerLM", "ff_activation", 3),
        ("RoutingTransformerLM", "shift_tokens", "x"),
        ("RoutingTransformerEncDec", "enc_ff_activation", 3),
        ("RoutingTransformerEncDec", "dec_pkm_layers", (0,)),
    ],
)
def test_errors_of_a_built_half_are_flag_errors_too(name, flag, value):
    build, base, _ = WRAPPERS[name]
    found = findings(build, **base, **{flag: value})
    assert set(found) == {flag}
    assert found[flag].startswith(f"`{flag}` ")


IDS = torch.zeros(2, 5, dtype=torch.long)
BAD = {"ids": torch.zeros(2, 5), "mask": torch.ones(2, 3, dtype=torch.bool)}
# call -> the arguments that are ids, and those that are masks
CALLS = {
    ("XTransformer", ""): (("src", "tgt"), ("mask", "tgt_mask")),
    ("XTransformer", "generate"): (("seq_in", "seq_out_start"), ("mask",)),
    ("XTransformer", "beam_search"): (("seq_in", "seq_out_start"), ("mask",)),
    ("Memformer", ""): (("src", "tgt"), ("src_mask", "tgt_mask")),
    ("Memformer", "generate"): (("src", "start_tokens"), ("src_mask",)),
    ("RoutingTransformerLM", ""): (("x",), ("input_mask",)),
    ("RoutingTransformerLM", "loss"): (("x",), ("input_mask",)),
    ("RoutingTransformerLM", "generate"): (("start_tokens",), ()),
    ("RoutingTransformerEncDec", ""): (("seq_in", "seq_out"), ("enc_input_mask", "dec_input_mask")),
    ("RoutingTransformerEncDec", "generate"): (("seq_in", "seq_out_start"), ("enc_input_mask",)),
}


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_arguments_are_named_as_given(name, call):
    build, base, _ = WRAPPERS[name]
    model = build(**base, **({"causal": True} if name == "RoutingTransformerLM" else {}))
    run = getattr(model, call) if call else model
    ids, masks = CALLS[name, call]
    given = dict.fromkeys(ids, IDS) | ({"seq_len": 2} if call in ("generate", "beam_search") else {})
    if name == "RoutingTransformerEncDec" and call:
        given["max_seq_len"] = given.pop("seq_len")
    run(**given)
    for argument in (*ids, *masks):
        with pytest.raises(ValueError, match=rf"^`{argument}[`\[]"):
            run(**{**given, argument: BAD["ids" if argument in ids else "mask"]})


def test_the_loss_of_both_halves_names_its_arguments():
    build, base, _ = WRAPPERS["RoutingTransformerEncDec"]
    model = build(**base)
    for argument in ("seq_in", "seq_out", "enc_input_mask", "dec_input_mask"):
        bad = BAD["mask" if "mask" in argument else "ids"]
        with pytest.raises(ValueError, match=f"^`{argument}` "):
            model(**{"seq_in": IDS, "seq_out": IDS, argument: bad}, return_loss=True)

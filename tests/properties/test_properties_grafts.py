"""Grafts of every flag: the function of the model is kept, or the flags that change it are named."""

import copy
from functools import cache

import pytest
import torch
from property_settings import ORDERS, TINY, tunings

import flagformer
from flagformer.flags import CATALOGUE, FlagError
from flagformer.interop.graft import graft
from flagformer.lab.reference import choices

IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
BASE = {**TINY, "model": "decoder", "depth": 1}
# Flags that a graft needs in the model that it is put into.
BEFORE = ("cross_attend", "rotary_pos_emb", "parallel_block")
# Grafts with other inputs or none, or of sizes that become smaller: they have tests of their own.
REFUSED = {
    "scaled_sinu_pos_emb", "sinu_pos_emb_scale", "sinu_pos_emb_endpoint", "sinu_pos_emb_offset",
    "custom_layers", "use_scalenorm", "attn_value_dim_head",
    "attn_shared_kv",
    "disable_abs_pos_emb", "ff_mult", "ff_inner_dim", "emb_dim", "logits_dim", "cross_attn_dim_context",
}  # fmt: skip
# Flags that change the function of inputs that these tests do not give: memories, prefixes, long contexts,
# trained biases of keys.
OTHER_CALLS = {
    "model=prefix_decoder", "max_mem_len", "shift_mem_down", "kmeans_ema_decay of RoutedContext",
    "commitment_factor of RoutedContext", "attn_k_bias",
}  # fmt: skip


@cache
def cases():
    """name -> (flags of the model, flags that are grafted)."""
    found = {}
    for choice in choices():
        extra = dict(choice.extra)
        base = {name: extra.pop(name) for name in BEFORE if name in extra}
        base |= {"depth": 2} if ORDERS & {*choice.flags, *extra} else {}
        found[choice.name] = (base, {**extra, **choice.flags})
    for name, flags in tunings().items():
        base = {"cross_attend": True} if flags.get("cross_attend") and "num_memory_slots" not in flags else {}
        base |= {"depth": 2} if ORDERS & set(flags) else {}
        found.setdefault(name, (base, {key: value for key, value in flags.items() if key not in base}))
    unique = {str(case): name for name, case in reversed(found.items())}
    return {name: found[name] for name in reversed(unique.values())}


@cache
def base(names):
    torch.manual_seed(0)
    model = flagformer.build({**BASE, **dict(names)}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def called(model, width=None):
    given = {}
    if model.attn_layers.has_cross and not model.num_memory_slots:
        given["context"] = CONTEXT[..., : width or 16]
    if model.embedding.counts:
        given["embed_ids"] = {name: torch.zeros_like(IDS) for name in model.embedding.counts}
    return model(IDS, **given)


def grafted(name):
    own, flags = cases()[name]
    old = base(tuple(own.items()))
    torch.manual_seed(1)
    return old, graft(copy.deepcopy(old), flags, "the model").eval(), flags


@pytest.mark.parametrize("name", cases())
def test_graft_keeps_the_function_or_names_the_change(name):
    if name in REFUSED:
        with pytest.raises(FlagError, match="`"):
            grafted(name)
        return
    old, new, flags = grafted(name)
    with torch.no_grad():
        want = called(old)
    got = called(new, flags.get("cross_attn_dim_context"))
    result = new.graft
    if got.shape != want.shape:
        assert result.changed
        return
    gap = float((got - want).detach().abs().max() / want.std())
    assert result.keeps_function == (gap < 1e-9) or name in OTHER_CALLS, (gap, result.line())
    if result.keeps_function and result.initialised:
        got.square().sum().backward()
        assert learns(new, old), "no new parameter has a gradient"


def learns(new, old):
    """Whether a parameter that the old model lacks has a gradient: a part without effect must not stay so."""
    known = dict(old.named_parameters())
    fresh = [p for name, p in new.named_parameters() if name not in known or known[name].shape != p.shape]
    return not fresh or any(p.grad is not None and bool(p.grad.any()) for p in fresh)


GROWN = {
    "query heads": {"heads": 8},
    "query heads, uneven": {"heads": 6},
    "key/value heads": {"attn_kv_heads": 4},
    "both": {"heads": 8, "attn_kv_heads": 8},
    "inner width": {"ff_inner_dim": 80},
    "depth": {"depth": 3},
    "positions": {"max_seq_len": 32},
    "a mixer next to attention": {"mixer": "gated_deltanet + attention"},
    "a mixer next to some attention": {"mixer": "attention : short_convolution + attention"},
    "cross-attention": {"cross_attend": True},
    "experts": {"ff_moe": True, "moe_num_experts": 3},
    "experts and a shared one": {"ff_moe": True, "moe_num_shared_experts": 1, "moe_balance_bias": True},
    "several": {
        "depth": 4,
        "heads": 8,
        "ff_inner_dim": 96,
        "attn_head_scale": True,
        "attn_gate_values": True,
    },
}
CONDITIONS = {
    "llama": {"adaptive_rmsnorm": 6, "use_rmsnorm": False},
    "gpt": {"adaptive_layernorm": 6, "norm_bias": False},
    "sandwich": {"adaptive_rmsnorm": 6, "use_rmsnorm": False, "norm_weight_offset": 0.0, "depth": 3},
}
LLAMA = {
    "rotary_pos_emb": True, "use_rmsnorm": True, "ff_glu": True, "ff_no_bias": True, "attn_kv_heads": 2,
    "attn_qk_rmsnorm": True, "depth": 2,
}  # fmt: skip
GPT = {"tie_embedding": True, "attn_bias": True, "norm_bias": True, "depth": 2}
SANDWICH = {**LLAMA, "sandwich_norm": True, "norm_weight_offset": 1.0}


@pytest.mark.parametrize("what", ["a condition", *GROWN])
@pytest.mark.parametrize("kind", ["llama", "gpt", "sandwich"])
def test_growth_keeps_the_function(kind, what):
    own = {"llama": LLAMA, "gpt": GPT, "sandwich": SANDWICH}[kind]
    flags = CONDITIONS[kind] if what == "a condition" else GROWN[what]
    old = base(tuple(own.items()))
    torch.manual_seed(1)
    new = graft(copy.deepcopy(old), flags, "the model").eval()
    assert new.graft.keeps_function, new.graft.line()
    assert not [name for name in new.graft.dropped if "norm" not in name]
    with torch.no_grad():
        torch.testing.assert_close(called(new), called(old), rtol=0, atol=1e-9)
    assert flagformer.build(new.flags).state_dict().keys() == new.state_dict().keys()


def test_components_that_start_neutral_are_those_of_the_catalogue():
    """Each component with `init_neutral` is grafted by a case above, which keeps the function."""
    selected = {flag for _, flags in cases().values() for flag in flags}
    neutral = [item for item in CATALOGUE if item.starts_neutral]
    assert len(neutral) > 12
    assert not [item.name for item in neutral if item.select not in selected]

"""Mixed precision: every setting, short and long rows, forward and backward, close to fp32."""

from itertools import product

import pytest
import torch
from property_checks import CHOOSING
from property_sample import SEVERAL, grouped
from property_settings import TINY, cross_forms, tunings
from property_subject import Subject, refusal

import flagformer
from commit_sample import part_of
from flagformer.lab.reference import choices, settings
from flagformer.ops.lengths import LONG

SETTINGS = {
    "nothing": settings(),
    **{choice.name: settings(choice) for choice in choices() if "model" not in choice.flags},
    **{f"{name} (tuned)": settings() | flags for name, flags in tunings().items()},
    **{name: settings() | flags for name, flags in cross_forms().items()},
}
SHORT, LONGER = 9, LONG + 44
# A decay that half precision can represent in rows this long.
LARGER = {"rotary_xpos_scale_base": 2 * LONGER}
# Relative to the logits' norm: bf16 has 8 bits, fp16 11; there are about twenty roundings, and the
# perturbed, sharp softmaxes of these models amplify them.
BOUNDS = {torch.bfloat16: 0.25, torch.float16: 0.1}


def rows_of(length):
    """Ways to give the positions of the tokens of two rows."""
    half = length // 2
    return {
        "plain": {},
        "right": {"mask": torch.arange(length) < torch.tensor([[length], [half]])},
        "left": {"seq_start_pos": torch.tensor([0, half])},
        "packed": {"seq_lens": [[half, length - half], [length - 2, 2]]},
    }


def valid_in(form, length):
    """Which of the logits [2, T] belong to valid tokens."""
    if "mask" in form:
        return form["mask"]
    starts = form.get("seq_start_pos", torch.zeros(2, dtype=torch.long))
    return torch.arange(length) >= starts[:, None]


def trained(subject, ids, form, dtype=None):
    """Logits, after a backward, and the gradients."""
    subject.model.zero_grad()
    valid = valid_in(form, ids.shape[1])
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logits = subject.model(ids, **subject.side(0, 1), **form)
        loss = logits.float().masked_fill(~valid[..., None], 0.0).logsumexp(-1).mean()
        if dtype is torch.float16:  # torch advises against it, and it works
            loss.backward()
    if dtype is not torch.float16:
        loss.backward()
    grads = [p.grad for p in subject.model.parameters() if p.grad is not None]
    return logits.detach().float().masked_fill(~valid[..., None], 0.0), grads


def off(got, want):
    return ((got - want).norm() / want.norm()).item()


def faults(subject, ids, dtype, form):
    """The failure of one way to run these rows under autocast; None if it passes."""
    try:
        want, _ = trained(subject, ids, form)
        got, grads = trained(subject, ids, form, dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not all(grad.isfinite().all() for grad in grads):
        return "a gradient is not finite"
    # rounding changes the selected tokens, experts, values
    chooses = any(name in flag for flag in subject.flags for name in CHOOSING)
    share = off(got, want)
    return None if share < (1.5 if chooses else BOUNDS[dtype]) else f"{share:.0%} off fp32"


def longest(name, **more):
    """A setting with a length for long rows, and with extra flags if it builds with them; else None."""
    chosen = {**SETTINGS[name], **TINY, "max_seq_len": LONGER}
    flags = {key: LARGER.get(key, value) for key, value in chosen.items()} | more
    return flags if refusal(flags) is None else None


ROWS = {
    "short": (SHORT, torch.bfloat16, "left"),
    "long bf16": (LONGER, torch.bfloat16, "packed"),
    "long fp16": (LONGER, torch.float16, "right"),
}


@pytest.mark.parametrize(("name", "rows"), part_of(product(SETTINGS, ROWS), 2))
def test_trains_under_autocast(name, rows):
    """Rotary leaves queries and keys in fp32 with values in half precision: long rows run with rotary."""
    length, dtype, way = ROWS[rows]
    turned = None if rows == "short" else longest(name, rotary_pos_emb=True)
    subject = Subject(turned or longest(name), torch.float32)
    ids = torch.randint(subject.model.num_tokens, (2, length))
    assert faults(subject, ids, dtype, rows_of(length)[way]) is None


@pytest.mark.parametrize("part", range(4))
def test_recomputation_uses_the_kernel_of_the_forward(part):
    """`reversible_exact` raises unless each recomputed sublayer gives the same numbers bit by bit; a
    learned bias has kernels with a gradient and without one. Several settings in one model."""
    exact = {"reversible": True, "reversible_exact": True}
    builds = {
        name: longest(name, **exact, rel_pos_bias=True) or longest(name, **exact)
        for name in list(SETTINGS)[part::4]
    }  # tests of executors cover the settings that refuse it
    for names, flags in grouped({name: flags for name, flags in builds.items() if flags}, SEVERAL):
        subject = Subject(flags, torch.float32)
        ids = torch.randint(subject.model.num_tokens, (2, SHORT))
        try:
            trained(subject, ids, {}, torch.bfloat16)
        except Exception as error:
            raise AssertionError(", ".join(names)) from error


# Every learned bias is 60 higher: softmax is invariant to it, but bf16 has no number between 60 and 60.25.
BIASES = {
    "T5": ({"rel_pos_bias": True}, "table", 60 / TINY["attn_dim_head"] ** 0.5),
    "dynamic": ({"dynamic_pos_bias": True, "dynamic_pos_bias_norm": True}, "out.bias", 60.0),
}
KERNELS = {
    "dense": {},
    "with prefix kv": {"attn_num_mem_kv": 1},
    "eager": {"attn_talking_heads": True},
    "local": {"n_local_attn_heads": 2, "local_attn_window_size": 24},
}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "whole model"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", BIASES)
def test_decoding_does_not_round_the_bias(bias, kernel, cast, dtype):
    """A decoded token after a long text is as near fp32 as the text in one pass: biases, which grow with the
    distance, stay in fp32 with queries in half precision."""
    chosen, name, height = BIASES[bias]
    flags = {**settings(), **TINY, "max_seq_len": 2 * LONG, **chosen, **KERNELS[kernel]}
    torch.manual_seed(3)
    model = flagformer.build(flags).eval()
    ids = torch.randint(model.num_tokens, (1, 2 * LONG))
    with torch.no_grad():
        for parameter in model.attn_layers.position_bias.parameters():
            parameter.add_(torch.randn_like(parameter))
        model.attn_layers.position_bias.get_parameter(name).add_(height)
        model.load_state_dict({key: value.to(dtype).float() for key, value in model.state_dict().items()})
        want = model(ids)[:, -1]
        model = model if cast else model.to(dtype)
        with torch.autocast("cpu", dtype, enabled=cast):
            whole, state = model(ids)[:, -1], model.init_state(1, ids.shape[1])
            model(ids[:, :-1], state=state)
            last = model(ids[:, -1:], state=state)[:, -1]
    bound = 1.5 * torch.finfo(dtype).eps  # about ten roundings of half an eps at most, of either sign
    assert off(whole.float(), want) < bound
    assert off(last.float(), want) < bound

"""Every pair of choices has every property, or is refused with a text that names both."""

from zlib import crc32

import pytest
import torch
from property_checks import checks_of, compiles, failures, sees_everything
from property_settings import TINY
from property_subject import Subject

import flagformer
from flagformer.reference import pairs, settings

PAIRS = {f"{first.name} x {second.name}": (first, second) for first, second in pairs()}
# What changes how a model is computed, or says what is taken anyway: it may leave every logit as it was.
NO_EFFECT_WANTED = {
    "checkpoint",
    "attn_flash=True",
    "attn_flash=False",
    "use_abs_pos_emb=True",
    "use_abs_pos_emb=False",
    "zero_init_branch_output",
    "depth_scale_residual",
}
# What needs both blocks of a small model when the graph is tried: orders of modules.
ORDERS = {"weight_tie_layers", "sandwich_coef", "layers_execute_order", "par_ratio"}


OTHER_KINDS = (
    {"model": "encoder"},
    {"model": "prefix_decoder"},
    {"model": "decoder", "cross_attend": True, "cross_attn_dim_context": 6},
    {"model": "encoder", "cross_attend": True},
)


def tiny(*chosen, depth=2):
    flags = {**settings(*chosen), **TINY}
    return {**flags, "depth": depth} if "depth" in flags else flags


def refusal(*chosen):
    """The text of the FlagError, or None where the pair builds."""
    try:
        flagformer.check(tiny(*chosen))
    except flagformer.FlagError as error:
        return str(error)
    return None


def answers(subject):
    """Logits in eval mode and, with the same draws, in training."""
    with torch.no_grad():
        quiet = subject.model(subject.ids, **subject.side(0, 1))
        torch.manual_seed(3)
        noisy = subject.model.train()(subject.ids, **subject.side(0, 1))
    subject.model.eval()
    return torch.stack([quiet, noisy])


def idle(pair):
    """Choices of a pair that leave parameters, logits and training as they are without them."""
    # without a relative scheme there would be a learned table, and other parameters hide an idle flag
    scheme = {"use_abs_pos_emb", "scaled_sinu_pos_emb"} & {name for choice in pair for name in choice.flags}
    fixed = {} if scheme else {"use_abs_pos_emb": False}
    both = Subject({**tiny(*pair), **fixed})
    found = []
    for choice, other in (pair, pair[::-1]):
        without = Subject({**tiny(other), **fixed})
        shapes = [{name: p.shape for name, p in s.model.state_dict().items()} for s in (both, without)]
        if choice.name in NO_EFFECT_WANTED or "model" in choice.flags or shapes[0] != shapes[1]:
            continue  # other parameters: that each is trained is another property
        without.model.load_state_dict(both.model.state_dict())
        without.context = both.context
        if torch.equal(answers(both), answers(without)):
            found.append(f"{choice.name} has no effect beside {other.name}")
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_pair_has_every_property_or_is_refused(name):
    pair = PAIRS[name]
    text = refusal(*pair)
    if text is not None:
        unnamed = [one.name for one in pair if not any(f"`{flag}" in text for flag in one.flags)]
        assert not unnamed, f"the refusal does not name {unnamed}: {text}"
        return
    subject = Subject(tiny(*pair))
    assert not failures(subject, checks_of(subject)) + idle(pair)


@pytest.mark.parametrize("name", [name for name in PAIRS if "model=" not in name])
def test_pair_in_another_kind_of_model(name):
    """Each pair in one of the other kinds, which one its name decides."""
    flags = {**tiny(*PAIRS[name]), **OTHER_KINDS[crc32(name.encode()) % len(OTHER_KINDS)]}
    try:
        subject = Subject(flags)
    except flagformer.FlagError:
        return  # what is refused, and how, the decoder's test sees
    checks = list(checks_of(subject))
    if subject.kind == "encoder" and not {"only_cross", "num_clusters"} & set(flags):
        checks.append(sees_everything)
    assert not failures(subject, checks)


@pytest.mark.parametrize("name", PAIRS)
def test_pair_compiles_or_is_refused(name):
    pair = PAIRS[name]
    if refusal(*pair) is None:
        # one block has every sublayer a second one has; only orders need two blocks
        depth = 2 if ORDERS & {choice.name for choice in pair} else 1
        assert not failures(Subject(tiny(*pair, depth=depth)), [compiles])

"""Every pair of choices has every property, or is refused with a text that names both."""

from zlib import crc32

import pytest
import torch
from property_checks import (
    checks_of,
    compiles,
    copies,
    exports,
    failures,
    low_precision_is_finite,
    sees_everything,
)
from property_sample import EACH, PAIRS, groups_of_each, groups_of_pairs, sampled, tiny
from property_settings import SEES_LITTLE, for_graphs, one_block
from property_subject import Subject

import flagformer
from flagformer import FlagError
from flagformer.lab.reference import choices

PARTS = 4
# Flags that change only how a model is computed, or state a default: they may leave every logit unchanged.
NO_EFFECT_WANTED = {
    "checkpoint",
    "attn_flash=True",
    "attn_flash=False",
    "use_abs_pos_emb=True",
    "use_abs_pos_emb=False",
    "zero_init_branch_output",
    "attn_zero_init_output",
    "cross_attn_zero_init_output",
    "ff_zero_init_output",
    "depth_scale_residual",
    "max_mem_len",
}
# Checks of every setting in test_properties_singles.py; of a pair low precision only in a decoder.
OF_SINGLES = {copies, low_precision_is_finite}
OTHER_KINDS = (
    {"model": "encoder"},
    {"model": "prefix_decoder"},
    {"model": "decoder", "cross_attend": True, "cross_attn_dim_context": 6},
    {"model": "encoder", "cross_attend": True},
)


def pytest_generate_tests(metafunc):
    if "pair" in metafunc.fixturenames:
        run = list(PAIRS) if metafunc.config.getoption("matrix") else sampled()
        metafunc.parametrize("pair", [PAIRS[name] for name in run], ids=run)


@pytest.fixture(scope="module")
def whole(pytestconfig):
    """Whether every pair is tested."""
    return pytestconfig.getoption("matrix")


@pytest.fixture(scope="module")
def groups(whole):
    return groups_of_pairs() if whole else groups_of_each()


def is_named(one, other, text):
    """Whether a refusal names a choice, or a flag it requires if that flag is the conflict."""
    if any(f"`{flag}" in text for flag in one.flags):
        return True
    if not any(f"`{flag}" in text for flag in one.extra):
        return False
    try:
        flagformer.check({**tiny(other), **one.extra})
    except FlagError:
        return True
    return False


def answers(subject):
    """Logits in eval mode and, with the same random numbers, in training."""
    with torch.no_grad():
        quiet = subject.model(subject.ids, **subject.side(0, 1))
        torch.manual_seed(3)
        noisy = subject.model.train()(subject.ids, **subject.side(0, 1))
    subject.model.eval()
    return torch.stack([quiet, noisy])


def idle(pair):
    """Choices of a pair that change neither parameters nor logits nor training."""
    # without a relative scheme there would be a learned table, and other parameters mask an unused flag
    scheme = {"use_abs_pos_emb", "scaled_sinu_pos_emb"} & {name for choice in pair for name in choice.flags}
    fixed = {} if scheme else {"use_abs_pos_emb": False}
    both = Subject({**tiny(*pair), **fixed})
    found = []
    for choice, other in (pair, pair[::-1]):
        without = Subject({**tiny(other), **fixed})
        shapes = [{name: p.shape for name, p in s.model.state_dict().items()} for s in (both, without)]
        if choice.name in NO_EFFECT_WANTED or "model" in choice.flags or shapes[0] != shapes[1]:
            continue  # other parameters: another property checks that each is trained
        without.model.load_state_dict(both.model.state_dict())
        without.context = both.context if without.has_cross else None
        without.condition = None if without.condition is None else both.condition
        if torch.equal(answers(both), answers(without)):
            found.append(f"{choice.name} has no effect with {other.name}")
    return found


def broken_elsewhere(pair):
    """Failures in one of the other kinds of model, chosen by the pair's name."""
    name = f"{pair[0].name} x {pair[1].name}"
    if "model=" in name:
        return []
    flags = {**tiny(*pair), **OTHER_KINDS[crc32(name.encode()) % len(OTHER_KINDS)]}
    if "attn_sparse_topk" not in flags:  # two blocks of which see every token
        flags = one_block(flags)
    try:
        subject = Subject(flags)
    except FlagError:
        return []  # refusals are tested in the decoder
    checks = [check for check in checks_of(subject) if check not in OF_SINGLES]
    if subject.kind == "encoder" and not SEES_LITTLE & set(flags):
        checks.append(sees_everything)
    return [f"{flags['model']}: {text}" for text in failures(subject, checks)]


def test_pair_has_every_property_or_is_refused(pair, whole):
    """Copies in `make matrix` only, in `make test` of groups."""
    try:
        subject = Subject(tiny(*pair))
    except FlagError as error:
        text = str(error)
        unnamed = [one.name for one, other in (pair, pair[::-1]) if not is_named(one, other, text)]
        assert not unnamed, f"the refusal does not name {unnamed}: {text}"
        found = []
    else:
        checks = [check for check in checks_of(subject) if whole or check is not copies]
        found = failures(subject, checks) + idle(pair)
    assert not found + broken_elsewhere(pair)


def test_the_sample_holds_every_choice_often_enough():
    run, grouped = sampled(), [choice for group in groups_of_each() for choice in group]
    for choice in choices():
        assert sum(choice in PAIRS[name] for name in run) >= EACH, choice.name
        assert choice in grouped, choice.name


@pytest.mark.parametrize("part", range(PARTS))
def test_choices_are_copied_compile_and_export(part, groups):
    """Several in one model, as a graph takes about as long for ten of them as for one."""
    found = [
        f"{', '.join(choice.name for choice in group)}: {text}"
        for group in groups[part::PARTS]
        for text in failures(Subject(for_graphs(tiny(*group))), [copies, compiles, exports])
    ]
    assert not found

"""Memory tokens before every block, with every other choice: ragged rows cross several of them."""

import pytest
import torch
from property_checks import checks_of, failures
from property_settings import TINY
from property_state_checks import run_cached
from property_subject import Subject, same

import flagformer
from commit_sample import part_of
from flagformer.flags import CATALOGUE
from flagformer.lab.reference import choices, settings

BLOCKS = {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 2}
REFUSED = {
    "only_cross": "`num_memory_tokens` and `only_cross`",
    "max_mem_len": "`max_mem_len` and `num_memory_tokens` cannot be combined",
    **{item.say(): "`num_memory_tokens` and `mixer`" for item in CATALOGUE.in_slot("sequence_mixer")},
}
CHOICES = {choice.name: choice for choice in choices() if choice.name != "num_memory_tokens"}


def ragged_steps(subject):
    """Token by token, in rows that reach the end of a block at different steps, equals one forward."""
    starts = torch.tensor([1, 4])
    want = subject(subject.ids, seq_start_pos=starts)
    for blocks in ((1,) * 9, (5, 1, 1, 1, 1), (3, 4, 2)):
        got = run_cached(subject, blocks=blocks, seq_start_pos=starts)
        for row, start in enumerate(starts.tolist()):
            same(got[row, start:], want[row, start:], f"row {row} in blocks of {blocks}")


@pytest.mark.parametrize("name", part_of(CHOICES, 2))
def test_interleaved_memory_with_every_choice(name):
    flags = {**settings(CHOICES[name]), **TINY, **BLOCKS}
    if name in REFUSED:
        with pytest.raises(flagformer.FlagError, match=REFUSED[name]):
            flagformer.check(flags)
        return
    subject = Subject(flags)
    checks = list(checks_of(subject))
    if subject.kind != "encoder":
        checks.append(ragged_steps)
    assert not failures(subject, checks)

"""Flags that refuse XL memories, and planted faults that the check of all others must find."""

import pytest
import torch
from property_checks import failures
from property_settings import TINY
from property_state_checks import memories_equal_one_long_pass, with_memories
from property_subject import Subject

import flagformer
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.lab.reference import choices, settings

MIXERS = ["mixer", *(item.say() for item in flagformer.CATALOGUE.in_slot("sequence_mixer"))]
# The state of a mixer does not pass between segments, and the ids of earlier tokens do not.
# Stacks without self-attention have no reader of memories; memory tokens precede a whole row.
REFUSED = {
    "attn_value_embed_tokens": "`max_mem_len` and `attn_value_embed_tokens` cannot be combined",
    "only_cross": "`max_mem_len` and `only_cross` cannot be combined",
    "num_memory_tokens": "`max_mem_len` and `num_memory_tokens` cannot be combined",
    **dict.fromkeys(MIXERS, "`max_mem_len` and `mixer` cannot be combined"),
}
CHOICES = {choice.name: choice for choice in choices()}


@pytest.mark.parametrize("name", CHOICES)
def test_only_listed_flags_refuse_memories(name):
    flags = {**settings(CHOICES[name]), **TINY, "max_mem_len": 4}
    if name in REFUSED:
        with pytest.raises(flagformer.FlagError, match=REFUSED[name]):
            flagformer.check(flags)
    else:
        flagformer.check(flags)


@pytest.mark.parametrize("scheme", ["scaled_sinu_pos_emb", "rotary_pos_emb", "rel_pos_bias", "shift_tokens"])
def test_memories_without_padding_masks_are_found(scheme, monkeypatch):
    honest = RecurrentState.updated

    def careless(streams, layout, held, most):
        left = honest(streams, layout, held, most)
        whole = torch.ones(1, left.length, dtype=torch.bool)
        return RecurrentState(
            left.hiddens, type(layout)(left.layout.positions, whole, start=left.layout.start)
        )

    subject = Subject({**settings(), **TINY, scheme: True if scheme != "shift_tokens" else 1})
    assert not failures(subject, [memories_equal_one_long_pass])
    monkeypatch.setattr(RecurrentState, "updated", staticmethod(careless))
    assert failures(subject, [memories_equal_one_long_pass])


@pytest.mark.parametrize("scheme", ["scaled_sinu_pos_emb", "rotary_pos_emb", "rel_pos_bias"])
def test_positions_that_restart_are_found(scheme, monkeypatch):
    def restarted(self, layout):
        return type(layout)(layout.positions, layout.valid, start=self.layout.end, contiguous_positions=False)

    subject = Subject({**settings(), **TINY, scheme: True})
    monkeypatch.setattr(RecurrentState, "shift_layout", restarted)
    assert failures(subject, [memories_equal_one_long_pass])


def test_a_memory_too_short_is_found():
    subject = Subject({**settings(), **TINY, "rotary_pos_emb": True, "max_mem_len": 16})
    model = with_memories(subject)
    model.recurrence.most = 2
    with torch.no_grad():
        _, mems = model(subject.ids[:, :4], return_mems=True)
        got = model(subject.ids[:, 4:], mems=mems)
    assert (got - subject(subject.ids)[:, 4:]).abs().max() > 1e-6


def test_tokens_of_memories_are_in_the_cluster_of_their_query():
    """With shared QK; norms of queries and keys have weights of their own."""
    flags = settings(CHOICES["num_clusters"], CHOICES["shared_qk"], CHOICES["attn_qk_rmsnorm"])
    assert not failures(Subject({**flags, **TINY}), [memories_equal_one_long_pass])

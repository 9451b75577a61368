"""The property checks of decode states, memories and slots: calls that read the past equal one whole call."""

import tempfile
from pathlib import Path

import pytest
import torch
from property_subject import differ, perturb, same

import flagformer


def run_cached(subject, blocks=(4, 1, 1, 3), side=None, **state_how):
    """Logits of consecutive blocks of tokens, from one decode state."""
    state = subject.model.init_state(2, 9, **state_how)
    side = subject.side(0, 1) if side is None else side
    pieces = []
    with torch.no_grad():
        for block in blocks:
            ids = subject.ids[:, state.length : state.length + block]
            pieces.append(subject.model(ids, state=state, **(subject.later(0, 1) if state.length else side)))
    assert state.length == sum(blocks)
    return torch.cat(pieces, dim=1)


def cached_equals_full(subject):
    same(run_cached(subject), subject.logits, "prefill, steps and a chunk")
    same(run_cached(subject, blocks=(1,) * 9), subject.logits, "single steps")
    starts = torch.tensor([0, 3])
    got, want = run_cached(subject, seq_start_pos=starts), subject(subject.ids, seq_start_pos=starts)
    same(got[0], want[0], "cached, full row")
    same(got[1, 3:], want[1, 3:], "cached, left-padded row")
    if subject.model.attn_layers.has_mixers:
        refuses_windows(subject)
        return
    window = run_cached(subject, window=3)
    same(window, subject(subject.ids, window=3), "cached with a window")


@torch.no_grad()
def continues(subject, state, *rows):
    """Logits of the last tokens of these rows, in two blocks; without gradient."""
    ids = subject.ids[list(rows)]
    how = {"state": state, **subject.later(*rows)}
    return torch.cat([subject.model(part, **how) for part in (ids[:, 5:6], ids[:, 6:])], dim=1)


@torch.no_grad()
def state_contract(subject):
    """A state that is saved and loaded, rolled back to a mark after other tokens, or cut to some of its rows
    continues as if nothing had happened; padded on the left too."""
    for starts in (None, torch.tensor([0, 3])):
        state = subject.model.init_state(2, 9, seq_start_pos=starts)
        for part in (slice(0, 4), slice(4, 5)):
            subject.model(
                subject.ids[:, part], state=state, **(subject.later if state.length else subject.side)(0, 1)
            )
        mark, one, swapped = state.mark(), state.select([1]), state.select([1, 0, 1])
        with tempfile.TemporaryDirectory() as directory:
            subject.model.save_state(state, Path(directory) / "state")
            loaded = subject.model.load_state(Path(directory) / "state")
        other = (subject.ids + 3) % subject.model.num_tokens
        for part in (slice(5, 7), slice(7, 8)):
            subject.model(other[:, part], state=state, **subject.later(0, 1))
        state.rollback(mark)
        assert state.length == loaded.length == one.length == 5
        got = continues(subject, state, 0, 1)
        same(continues(subject, loaded, 0, 1), got, "loaded, and back at a mark", tolerance=0.0)
        same(continues(subject, one, 1), got[1:], "a row of the state")
        same(continues(subject, swapped, 1, 0, 1), got[[1, 0, 1]], "repeated rows of the state")
        want = subject(subject.ids, **({} if starts is None else {"seq_start_pos": starts}))
        same(got, want[:, 5:], "back at a mark")


def refuses_windows(subject):
    """A mixer reads all earlier tokens: arguments that hide some of them are refused by name."""
    for name, value in (("window", 3), ("attn_mask", torch.ones(9, 9, dtype=torch.bool))):
        with pytest.raises(ValueError, match=f"`{name}` is for attention"):
            subject(subject.ids, **{name: value})
    with pytest.raises(ValueError, match="`window` is for attention"):
        subject.model.init_state(2, 9, window=3)


def prefix_is_seen_by_all(subject):
    """A prefix attends to itself only; the rest is causal; cached equals full."""
    lengths = torch.tensor([4, 2])
    inputs = {"prefix_attn_len": lengths}
    full = subject(subject.ids, **inputs)
    if subject.model.attn_layers.has_self:
        differ(full[:, 0], subject.logits[:, 0], "the first token sees the prefix")
    for row, length in enumerate((4, 2)):
        changed = subject.ids.clone()
        changed[row, length:] = (changed[row, length:] + 3) % subject.model.num_tokens
        same(
            subject(changed, **inputs)[row, :length],
            full[row, :length],
            "a prefix before a change after it",
        )
    same(run_cached(subject, side={**subject.side(0, 1), **inputs}), full, "cached after a prefix")
    starts = torch.tensor([0, 2])
    padded = subject(subject.ids, seq_start_pos=starts, **inputs)
    same(
        padded[1:, 2:], subject(subject.ids[1:, 2:], 1, prefix_attn_len=2), "a left-padded row with a prefix"
    )
    side = {**subject.side(0, 1), **inputs}
    got = run_cached(subject, side=side, seq_start_pos=starts)
    same(got[1, 2:], padded[1, 2:], "cached after a left-padded prefix")
    packed = subject(subject.ids, seq_lens=[[4, 5], [6, 3]], prefix_attn_len=2)
    alone = subject(subject.ids[1:, 6:], 1, prefix_attn_len=2)
    same(packed[1:, 6:], alone, "a packed sequence with a prefix")


def context_padding(subject):
    """Masked tokens of the context change nothing; cached too."""
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    got = subject(subject.ids, context_mask=mask)
    same(got[:1], subject.logits[:1], "a full context in a batch with a padded one")
    with torch.no_grad():
        alone = subject.model(subject.ids[1:], context=subject.context[1:, :2], **subject.later(1))
    same(got[1:], alone, "a padded context")
    differ(got[1], subject.logits[1], "hiding a part of the context")
    if subject.model.can_cache:
        side = {**subject.side(0, 1), "context_mask": mask}
        same(run_cached(subject, side=side), got, "cached with a padded context")


def with_memories(subject):
    """The same model with memories of every segment; None if its flags refuse them, or slots carry more."""
    if subject.model.num_memory_slots:
        return None
    flags = {name: value for name, value in subject.flags.items() if name != "shift_mem_down"}
    try:
        model = flagformer.build({**flags, "max_mem_len": 16}).to(subject.dtype).eval()
    except flagformer.FlagError:
        return None
    model.load_state_dict(subject.model.state_dict())
    return model


def in_segments(model, ids, blocks=(4, 1, 4), mask=None, first=(), **side):
    """Logits of consecutive segments; `first` is given with the first segment only."""
    pieces, mems, start = [], None, 0
    for block in blocks:
        part = slice(start, start + block)
        inputs = dict(first) if mems is None else {"mems": mems}
        if mask is not None:
            inputs["mask"] = mask[:, part]
        with torch.no_grad():
            logits, mems = model(ids[:, part], return_mems=True, **inputs, **side)
        pieces.append(logits)
        start += block
    return torch.cat(pieces, dim=1)


def memories_equal_one_long_pass(subject):
    """Segments with memories of the whole past equal one forward over the whole row."""
    model, side = with_memories(subject), subject.side(0, 1)
    if model is None:
        return
    got, want = in_segments(model, subject.ids, **side), subject.logits
    same(got, want, "segments")
    differ(got[:, 5:], subject(subject.ids[:, 5:]), "a segment with and without memories")
    starts = torch.tensor([0, 3])
    got = in_segments(model, subject.ids, first={"seq_start_pos": starts}, **side)
    want = subject(subject.ids, seq_start_pos=starts)
    same(got[0], want[0], "segments, full row in a batch with a left-padded one")
    same(got[1, 3:], want[1, 3:], "segments, left-padded row")
    _memories_of_right_padding(subject, model, side)
    if subject.kind == "prefix_decoder":
        prefix = {"prefix_attn_len": torch.tensor([4, 2])}
        got = in_segments(model, subject.ids, first=prefix, **side)
        same(got, subject(subject.ids, **prefix), "segments after a prefix")


def _memories_of_right_padding(subject, model, side):
    """A row padded at the end of each segment equals the row without padding."""
    kept = [0, 1, 5, 6, 7]
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0], mask[1, kept] = True, True
    got = in_segments(model, subject.ids, mask=mask, **side)
    same(got[0], subject.logits[0], "segments, full row in a batch with a right-padded one")
    alone = subject(subject.ids[1:, kept], 1)
    same(got[1:, kept], alone, "segments, right-padded row")


def memories_of_both_directions(subject):
    """Of an encoder: earlier segments change later ones, and padding in memories does not."""
    model, side = with_memories(subject), subject.side(0, 1)
    if model is None:
        return
    got = in_segments(model, subject.ids, (4, 5), **side)
    same(got[:, :4], subject(subject.ids[:, :4]), "the first segment")
    differ(got[:, 4:], subject(subject.ids[:, 4:]), "a segment with and without memories")
    mask = torch.arange(9) != torch.tensor([[9], [3]])
    alone = in_segments(model, subject.ids[1:, [0, 1, 2, 4, 5, 6, 7, 8]], (3, 5), **subject.side(1))
    padded = in_segments(model, subject.ids, (4, 5), mask=mask, **side)
    same(padded[1:, 4:], alone[:, 3:], "segments, right-padded row")
    starts = {"seq_start_pos": torch.tensor([0, 2])}
    padded = in_segments(model, subject.ids, (4, 5), first=starts, **side)
    alone = in_segments(model, subject.ids[1:, 2:], (2, 5), **subject.side(1))
    same(padded[1:, 2:], alone, "segments, left-padded row")


def slots_over_segments(subject):
    """Slots depend on earlier segments only, and not on padding; a stream gives the same slots."""
    model = perturb(flagformer.build({**subject.flags, "max_seq_len": 4}).to(subject.dtype).eval())
    if model.max_mem_len and model.absolute_positions:
        return
    ids, changed = subject.ids, subject.ids.clone()
    changed[:, 2] = (changed[:, 2] + 3) % model.num_tokens
    full, other = (in_segments(model, one, (4, 4, 1)) for one in (ids, changed))
    differ(full[:, 8:], other[:, 8:], "the third segment, after a change in the first")
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 3) % model.num_tokens
    same(in_segments(model, changed, (4, 4, 1))[:, :4], full[:, :4], "a segment before a change in the next")
    same(in_segments(model, ids[1:], (4, 4, 1)), full[1:], "segments of a row alone")
    with torch.no_grad():
        _, mems = model(ids[:, :4], return_mems=True)
        tail = torch.tensor([[True] * 4, [False] * 4])
        logits, left = model(ids[:, 4:8], mems=mems, mask=tail, return_mems=True)
        _, padded = model(ids[:, :4], seq_start_pos=torch.tensor([0, 2]), return_mems=True)
        _, alone = model(ids[1:, 2:4], return_mems=True)
    assert logits.isfinite().all(), "logits of a row of padding are not finite"
    same(left.slots[1], mems.slots[1], "slots of a row of padding", tolerance=0.0)
    differ(left.slots[0], mems.slots[0], "slots of the other row")
    same(padded.slots[1:], alone.slots, "slots of a left-padded row")
    if model.can_cache:
        stream = model.stream(2)
        pieces = [stream(part) for part in ids.split((1, 2, 4, 1, 1), dim=1)]
        same(torch.cat(pieces, dim=1), full, "a stream of single tokens and of whole segments")

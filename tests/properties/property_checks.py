"""The property checks. Each takes a Subject and asserts; `CHECKS` lists those of each kind of model."""

import copy
import io

import torch
from property_subject import TIGHT, Subject, differ, perturb, same

import flagformer

# Softmax is invariant to a constant added to all scores of a query, so the last bias of the
# network only acts relative to prefix keys, which have no position bias.
CANCELLED = "attn_layers.position_bias.out.bias"

# Flags of models that select keys, experts or values.
CHOOSING = {"attn_sparse_topk", "num_clusters", "context_num_clusters", "ff_pkm", "ff_moe"}


def undone_gains(model):
    """Scales of ScaleNorm without effect: unit-length q and k cancel one factor, cross-attention has no
    values of x to scale, and a norm after self-attention cancels theirs; post-norms cancel the effect of the
    norm before self-attention."""
    flags = model.flags
    if not (flags.get("use_scalenorm") and flags.get("attn_qk_norm")):
        return set()
    kinds = {"c", "a"} if flags.get("sandwich_norm") else {"c"}
    sublayers = enumerate(model.attn_layers.sublayers)
    if flags.get("pre_norm") is False:
        return {
            f"attn_layers.sublayers.{i - 1}.out_norm.weight" for i, after in sublayers if after.kind == "a"
        }
    return {
        f"attn_layers.sublayers.{i}.in_norm.weight" for i, sublayer in sublayers if sublayer.kind in kinds
    }


def trains(subject):
    """Every parameter gets a gradient; the training forward and its gradients are finite."""
    model = subject.model
    subject.loss().backward()
    none = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    seated = any(s.kind == "a" and s.fn.num_prefix_kv for s in subject.model.attn_layers.sublayers)
    undone = undone_gains(model)
    dead = [name for name in none if (name != CANCELLED or seated) and name not in undone]
    assert not dead, f"parameters without a gradient: {', '.join(dead)}"
    model.zero_grad()
    model.train()
    loss = subject.loss()
    loss.backward()
    model.eval()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite(), "the loss in training is not finite"
    assert all(grad.isfinite().all() for grad in grads), "a gradient in training is not finite"
    model.zero_grad()


def learns_what_it_shows(subject):
    """The same logits with and without autograd, although kernels may differ."""
    with_grad = subject.model(subject.ids, **subject.side(0, 1)).detach()
    same(subject(subject.ids), with_grad, "logits with and without gradients")


def is_deterministic(subject):
    same(subject(subject.ids), subject(subject.ids), "two forwards in eval mode", tolerance=0.0)


def rows_are_independent(subject):
    both = subject(subject.ids)
    for row in (0, 1):
        same(subject(subject.ids[row : row + 1], row), both[row : row + 1], f"row {row} alone")


def sees_no_future(subject):
    """For each cut: other tokens after it change nothing before it, and change the output at it."""
    ids = subject.ids[:1]
    length = ids.shape[1]
    cuts = range(1, length)
    changed = ids.repeat(len(cuts), 1)
    for row, cut in enumerate(cuts):
        changed[row, cut:] = (changed[row, cut:] + 3) % subject.model.num_tokens
    want, got = subject(ids, 0), subject(changed, *[0] * len(cuts))
    for row, cut in enumerate(cuts):
        same(got[row, :cut], want[0, :cut], f"logits before a change at {cut}")
        differ(got[row, cut], want[0, cut], f"logits at a change at {cut}")


def sees_everything(subject):
    """Without a causal mask every logit depends on every token."""
    ids = subject.ids[:1]
    for place in (0, ids.shape[1] - 1):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 3) % subject.model.num_tokens
        difference = (subject(changed, 0) - subject(ids, 0)).abs().amax(dim=-1)
        assert (difference > 1e-6).all(), f"some logits do not depend on token {place}"


def prefix_is_consistent(subject):
    """A shorter input gives the first logits of the longer one."""
    full = subject(subject.ids)
    for length in (1, 5):
        same(subject(subject.ids[:, :length]), full[:, :length], f"the first {length} tokens alone")


def right_padding(subject):
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    got = subject(subject.ids, mask=mask)
    same(got[:1], subject(subject.ids[:1], 0), "a full row in a batch with a padded one")
    same(got[1:, :5], subject(subject.ids[1:, :5], 1), "a right-padded row")


def left_padding(subject):
    got = subject(subject.ids, seq_start_pos=torch.tensor([0, 4]))
    same(got[:1], subject(subject.ids[:1], 0), "a full row in a batch with a left-padded one")
    same(got[1:, 4:], subject(subject.ids[1:, 4:], 1), "a left-padded row")
    tail = torch.arange(9) < torch.tensor([[9], [7]])
    got = subject(subject.ids, seq_start_pos=torch.tensor([0, 4]), mask=tail)
    same(got[1:, 4:7], subject(subject.ids[1:, 4:7], 1), "a row padded on both sides")


def packing(subject):
    lengths = [[4, 5], [3, 2, 2]]
    got = subject(subject.ids, seq_lens=lengths)
    for row, parts in enumerate(lengths):
        start = 0
        for part in parts:
            piece = slice(start, start + part)
            alone = subject(subject.ids[row : row + 1, piece], row)
            same(got[row : row + 1, piece], alone, f"packed tokens {start}:{start + part} of row {row}")
            start += part


def run_cached(subject, blocks=(4, 1, 1, 3), side=None, **state_how):
    """Logits of consecutive blocks of tokens, from one decode state."""
    state = subject.model.init_state(2, 9, **state_how)
    side = subject.side(0, 1) if side is None else side
    pieces = []
    with torch.no_grad():
        for block in blocks:
            ids = subject.ids[:, state.length : state.length + block]
            pieces.append(subject.model(ids, state=state, **(side if state.length == 0 else {})))
    assert state.length == sum(blocks)
    return torch.cat(pieces, dim=1)


def cached_equals_full(subject):
    same(run_cached(subject), subject(subject.ids), "prefill, steps and a chunk")
    same(run_cached(subject, blocks=(1,) * 9), subject(subject.ids), "single steps")
    starts = torch.tensor([0, 3])
    got, want = run_cached(subject, seq_start_pos=starts), subject(subject.ids, seq_start_pos=starts)
    same(got[0], want[0], "cached, full row")
    same(got[1, 3:], want[1, 3:], "cached, left-padded row")
    window = run_cached(subject, window=3)
    same(window, subject(subject.ids, window=3), "cached with a window")


def prefix_is_seen_by_all(subject):
    """A prefix attends to itself only; the rest is causal; cached equals full."""
    lengths = torch.tensor([4, 2])
    how = {"prefix_attn_len": lengths}
    full = subject(subject.ids, **how)
    if subject.model.attn_layers.has_self:
        differ(full[:, 0], subject(subject.ids)[:, 0], "the first token sees the prefix")
    for row, length in enumerate((4, 2)):
        changed = subject.ids.clone()
        changed[row, length:] = (changed[row, length:] + 3) % subject.model.num_tokens
        same(subject(changed, **how)[row, :length], full[row, :length], "a prefix before a change after it")
    same(run_cached(subject, side={**subject.side(0, 1), **how}), full, "cached after a prefix")
    starts = torch.tensor([0, 2])
    padded = subject(subject.ids, seq_start_pos=starts, **how)
    same(
        padded[1:, 2:], subject(subject.ids[1:, 2:], 1, prefix_attn_len=2), "a left-padded row with a prefix"
    )
    side = {**subject.side(0, 1), **how}
    got = run_cached(subject, side=side, seq_start_pos=starts)
    same(got[1, 2:], padded[1, 2:], "cached after a left-padded prefix")
    packed = subject(subject.ids, seq_lens=[[4, 5], [6, 3]], prefix_attn_len=2)
    alone = subject(subject.ids[1:, 6:], 1, prefix_attn_len=2)
    same(packed[1:, 6:], alone, "a packed sequence with a prefix")


def context_padding(subject):
    """Masked tokens of the context change nothing; cached too."""
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    got = subject(subject.ids, context_mask=mask)
    same(got[:1], subject(subject.ids[:1], 0), "a full context in a batch with a padded one")
    with torch.no_grad():
        alone = subject.model(subject.ids[1:], context=subject.context[1:, :2])
    same(got[1:], alone, "a padded context")
    differ(got[1], subject(subject.ids)[1], "hiding a part of the context")
    if subject.model.can_cache:
        side = {**subject.side(0, 1), "context_mask": mask}
        same(run_cached(subject, side=side), got, "cached with a padded context")


def copies(subject):
    """Deep copies, saved and rebuilt models give the same outputs and share no tensor."""
    model, want = subject.model, subject(subject.ids)
    rebuilt = flagformer.build(model.flags).to(want.dtype).eval()
    rebuilt.load_state_dict(model.state_dict())
    made = {"deepcopy": copy.deepcopy(model), "rebuilt": rebuilt}
    buffer = io.BytesIO()  # a pickle too; test_properties_buffers.py covers plain pickles
    torch.save(model, buffer)
    buffer.seek(0)
    made["torch.save"] = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        for name, other in made.items():
            same(other(subject.ids, **subject.side(0, 1)), want, name)
            perturb(other, seed=5)
            differ(other(subject.ids, **subject.side(0, 1)), want, f"a perturbed {name}")
    same(subject(subject.ids), want, "the original after its copies were perturbed")


def bf16_is_finite(subject):
    """Under bf16 autocast: finite logits and gradients, close to those of fp32; decoding too."""
    model = copy.deepcopy(subject.model).float()
    side = {name: value.float() for name, value in subject.side(0, 1).items()}
    with torch.no_grad():
        want = model(subject.ids, **side)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(subject.ids, **side).float()
        (got * got.detach().cos()).sum().backward()
        cached = None
        if model.can_cache:
            state = model.init_state(2, 9)
            with torch.no_grad():
                first = model(subject.ids[:, :6], state=state, **side)
                second = model(subject.ids[:, 6:], state=state)
            cached = torch.cat([first, second], dim=1).float()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert got.isfinite().all(), "logits under bf16 autocast are not finite"
    assert all(grad.isfinite().all() for grad in grads), "a gradient under bf16 autocast is not finite"
    for name, logits in (("forward", got), ("decoding", cached)):
        if logits is not None:
            # bf16 has 8 bits, there are about twenty roundings, and sharp attention amplifies them
            share = (logits.detach() - want).abs().mean() / want.abs().mean()
            # rounding changes a selection
            chooses = any(name in flag for flag in subject.flags for name in CHOOSING)
            assert share < (1.0 if chooses else 0.25), f"{name} under bf16 autocast is {share:.0%} off"


def low_precision_is_finite(subject):
    """The whole model in half precision, decoding included."""
    for dtype in (torch.float16, torch.bfloat16):
        low = Subject(subject.flags, dtype)
        logits = [low(low.ids)] + ([run_cached(low, blocks=(5, 1, 3))] if low.model.can_cache else [])
        for one in logits:
            assert one.dtype is dtype, f"logits of a model in {dtype} are {one.dtype}"
            assert one.isfinite().all(), f"logits of a model in {dtype} are not finite"


def compiles(subject):
    """One graph without breaks, and the same numbers."""
    torch._dynamo.reset()
    compiled = torch.compile(subject.model, fullgraph=True, backend="eager")
    with torch.no_grad():
        got = compiled(subject.ids, **subject.side(0, 1))
    same(got, subject(subject.ids), "compiled against eager", TIGHT)


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
        how = dict(first) if mems is None else {"mems": mems}
        if mask is not None:
            how["mask"] = mask[:, part]
        with torch.no_grad():
            logits, mems = model(ids[:, part], return_mems=True, **how, **side)
        pieces.append(logits)
        start += block
    return torch.cat(pieces, dim=1)


def memories_equal_one_long_pass(subject):
    """Segments with memories of the whole past equal one forward over the whole row."""
    model, side = with_memories(subject), subject.side(0, 1)
    if model is None:
        return
    got, want = in_segments(model, subject.ids, **side), subject(subject.ids)
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
    places = [0, 1, 5, 6, 7]
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0], mask[1, places] = True, True
    got = in_segments(model, subject.ids, mask=mask, **side)
    same(got[0], subject(subject.ids)[0], "segments, full row in a batch with a right-padded one")
    alone = subject(subject.ids[1:, places], 1)
    same(got[1:, places], alone, "segments, right-padded row")


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


def exports(subject):
    """One exported program for every number of rows and every length of the input, short
    and long, and of a context; and the same numbers.

    Not strict: strict export traces the Python code, in which checks of values would fail; the strict
    form traces as `compiles` does.
    """
    side = subject.side(0, 1)
    # `attn_sparse_topk` selects from more keys than it keeps; DYNAMIC, as torch cannot prove constraints on
    # quotients of lengths (blocks, chunks): a size that the graph specialised is an error all the same
    longest, rows = subject.flags["max_seq_len"], torch.export.Dim.DYNAMIC
    sizes = {"x": {0: rows, 1: rows(min=4, max=longest)}, **{name: {0: rows, 1: rows} for name in side}}
    # torch's shape caches cost more than they save for a small program traced once
    with torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        exported = torch.export.export(
            subject.model, (subject.ids,), side, dynamic_shapes=sizes, strict=False
        )
        program = exported.module()
        for batch, length in ((1, 9), (3, 4), (5, 16), (2, longest)):
            ids = torch.randint(subject.model.num_tokens, (batch, length))
            some = {
                name: torch.randn(batch, 2 * batch - 1, *x.shape[2:], dtype=x.dtype)
                for name, x in side.items()
            }
            want = subject.model(ids, **some)
            same(program(ids, **some), want, f"exported, {batch} rows of {length} tokens", TIGHT)


COMMON = (
    trains, learns_what_it_shows, is_deterministic, rows_are_independent, right_padding, left_padding,
    packing, copies, bf16_is_finite, low_precision_is_finite,
)  # fmt: skip
CAUSAL = (*COMMON, sees_no_future, prefix_is_consistent)


def checks_of(subject):
    """The properties of this model, without the compiled ones."""
    checks = CAUSAL if subject.kind in ("decoder", "prefix_decoder") else (*COMMON,)
    if subject.kind in ("decoder", "prefix_decoder"):
        checks = (*checks, cached_equals_full, memories_equal_one_long_pass)
    else:
        checks = (*checks, memories_of_both_directions)
    if subject.kind == "prefix_decoder":
        checks = (*checks, prefix_is_seen_by_all)
    if subject.model.num_memory_slots:
        checks = (*checks, slots_over_segments)
    return (*checks, context_padding) if subject.has_cross else checks


def failures(subject, checks):
    """The messages of all failed checks."""
    found = []
    for check in checks:
        try:
            check(subject)
        except Exception as error:  # a crash is a failed property like any other
            found.append(f"{check.__name__}: {type(error).__name__}: {error}")
    return found

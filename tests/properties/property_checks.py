"""The property checks. Each takes a Subject and asserts; `CHECKS` lists those of each kind of model."""

import copy
import io
from functools import partial

import torch
from property_state_checks import (
    cached_equals_full,
    context_padding,
    memories_equal_one_long_pass,
    memories_of_both_directions,
    prefix_is_seen_by_all,
    run_cached,
    slots_over_segments,
    state_contract,
)
from property_subject import TIGHT, differ, perturb, same

import flagformer
from flagformer.attention.source import CrossAttentionInputs
from flagformer.mixer.short_convolution import ShortConvolution
from flagformer.position.none import NoRotation
from rounding_noise import sensitivity

# Flags of models that select keys, experts or values: softpick the keys with a positive score, and the norm
# after a sublayer that found none or one tiny score amplifies which.
CHOOSING = {"attn_sparse_topk", "attn_softpick", "num_clusters", "context_num_clusters", "ff_pkm", "ff_moe"}


def cancelled_biases(model):
    """Softmax is invariant to a constant added to all scores of a query: the last bias of a network of
    distances acts relative to prefix keys only, and a bias of all keys only if they are rotated."""
    attentions = [(i, s.fn) for i, s in enumerate(model.attn_layers.sublayers) if s.kind in ("a", "c")]
    found = {
        f"attn_layers.sublayers.{i}.fn.source.qk_norm.k_norm.bias"
        for i, fn in attentions
        if isinstance(fn.source, CrossAttentionInputs) or isinstance(fn.source.rotation, NoRotation)
    }
    own = [fn for _, fn in attentions if not isinstance(fn.source, CrossAttentionInputs)]
    return found if any(fn.num_prefix_kv for fn in own) else {*found, "attn_layers.position_bias.out.bias"}


def undone_gains(model):
    """Scales of ScaleNorm without effect. Unit-length q and k cancel one factor, cross-attention has no
    values of x to scale, and a norm after self-attention cancels theirs; post-norms cancel the effect of the
    norm before self-attention. A short convolution is homogeneous, so that a norm after it cancels a scale.
    """
    flags, sublayers = model.flags, list(enumerate(model.attn_layers.sublayers))
    if not flags.get("use_scalenorm"):
        return set()
    unit_qk = flags.get("attn_qk_norm") or flags.get("attn_qk_rmsnorm")
    if flags.get("pre_norm") is False:
        found = {i - 1 for i, after in sublayers if after.kind == "a" and unit_qk}
        return {f"attn_layers.sublayers.{i}.out_norm.weight" for i in found}
    kinds = set()
    if unit_qk:
        kinds |= {"c", "a"} if flags.get("sandwich_norm") else {"c"}
    if flags.get("sandwich_norm"):
        kinds |= {s.kind for _, s in sublayers if isinstance(s.fn, ShortConvolution)}
    return {f"attn_layers.sublayers.{i}.in_norm.weight" for i, s in sublayers if s.kind in kinds}


def trains(subject):
    """Every parameter gets a gradient; the training forward and its gradients are finite."""
    model = subject.model
    subject.loss().backward()
    none = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    dead = sorted(set(none) - cancelled_biases(model) - undone_gains(model))
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
    same(subject.logits, with_grad, "logits with and without gradients")


def is_deterministic(subject):
    """Two forwards are equal, as no call changes the model; the last check, after every other call."""
    same(subject(subject.ids), subject.logits, "two forwards in eval mode", tolerance=0.0)


def rows_are_independent(subject):
    for row in (0, 1):
        alone = subject(subject.ids[row : row + 1], row)
        same(alone, subject.logits[row : row + 1], f"row {row} alone")


def sees_no_future(subject):
    """For each cut: other tokens after it change nothing before it, and change the output at it."""
    ids = subject.ids[:1]
    length = ids.shape[1]
    cuts = range(1, length)
    changed = ids.repeat(len(cuts), 1)
    for row, cut in enumerate(cuts):
        changed[row, cut:] = (changed[row, cut:] + 3) % subject.model.num_tokens
    want, got = subject.logits[:1], subject(changed, *[0] * len(cuts))
    for row, cut in enumerate(cuts):
        same(got[row, :cut], want[0, :cut], f"logits before a change at {cut}")
        differ(got[row, cut], want[0, cut], f"logits at a change at {cut}")


def sees_everything(subject):
    """Without a causal mask every logit depends on every token."""
    ids = subject.ids[:1]
    for token in (0, ids.shape[1] - 1):
        changed = ids.clone()
        changed[0, token] = (changed[0, token] + 3) % subject.model.num_tokens
        difference = (subject(changed, 0) - subject.logits[:1]).abs().amax(dim=-1)
        # sharp scores under a penalty leave weights of 1e-7; the logits of a masked token stay as they were
        assert (difference > 1e-12).all(), f"some logits do not depend on token {token}"


def prefix_is_consistent(subject):
    """A shorter input gives the first logits of the longer one."""
    full = subject.logits
    for length in (1, 5):
        same(subject(subject.ids[:, :length]), full[:, :length], f"the first {length} tokens alone")


def right_padding(subject):
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    got = subject(subject.ids, mask=mask)
    same(got[:1], subject.logits[:1], "a full row in a batch with a padded one")
    same(got[1:, :5], subject(subject.ids[1:, :5], 1), "a right-padded row")


def left_padding(subject):
    got = subject(subject.ids, seq_start_pos=torch.tensor([0, 4]))
    same(got[:1], subject.logits[:1], "a full row in a batch with a left-padded one")
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


def copies(subject):
    """Deep copies, saved and rebuilt models give the same outputs and share no tensor."""
    model, want = subject.model, subject.logits
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
    low = subject.lowered.lower(torch.float32)
    model, side = low.model, low.side(0, 1)
    with torch.no_grad():
        want = model(subject.ids, **side)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(subject.ids, **side).float()
        grads = torch.autograd.grad(
            (got * got.detach().cos()).sum(), list(model.parameters()), allow_unused=True
        )
        cached = None
        if model.can_cache:
            state = model.init_state(2, 9)
            with torch.no_grad():
                first = model(subject.ids[:, :6], state=state, **side)
                second = model(subject.ids[:, 6:], state=state, **low.later(0, 1))
            cached = torch.cat([first, second], dim=1).float()
    assert got.isfinite().all(), "logits under bf16 autocast are not finite"
    assert all(g is None or g.isfinite().all() for g in grads), "a gradient under bf16 autocast is not finite"
    for name, logits in (("forward", got), ("decoding", cached)):
        if logits is not None:
            # bf16 has 8 bits, there are about twenty roundings, and sharp attention amplifies them
            share = _share(logits.detach(), want)
            # rounding changes a selection
            chooses = any(name in flag for flag in subject.flags for name in CHOOSING)
            most = 1.0 if chooses else 0.25
            if share >= most:  # many components together amplify more
                run, change = partial(model, subject.ids, **side), partial(_share, want=want)
                most = max(most, 3 * sensitivity(model, run, change, torch.bfloat16))
            assert share < most, f"{name} under bf16 autocast is {share:.0%} off"


def _share(got, want):
    return ((got - want).abs().mean() / want.abs().mean()).item()


def low_precision_is_finite(subject):
    """The whole model in half precision, decoding included."""
    for dtype in (torch.float16, torch.bfloat16):
        low = subject.lowered.lower(dtype)
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
    same(got, subject.logits, "compiled against eager", TIGHT)


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
    if "condition" in side:
        sizes["condition"] = {0: rows}
    # torch's shape caches cost more than they save for a small program traced once
    with torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        exported = torch.export.export(
            subject.model, (subject.ids,), side, dynamic_shapes=sizes, strict=False
        )
        program = exported.module()
        for batch, length in ((1, 9), (3, 4), (5, 16), (2, longest)):
            ids = torch.randint(subject.model.num_tokens, (batch, length))
            shapes = {name: (batch, 2 * batch - 1, *x.shape[2:]) for name, x in side.items()}
            shapes |= {name: (batch, *side[name].shape[1:]) for name in {"condition"} & set(side)}
            some = {name: torch.randn(shape, dtype=side[name].dtype) for name, shape in shapes.items()}
            want = subject.model(ids, **some)
            same(program(ids, **some), want, f"exported, {batch} rows of {length} tokens", TIGHT)


COMMON = (
    trains, learns_what_it_shows, rows_are_independent, right_padding, left_padding,
    packing, copies, bf16_is_finite, low_precision_is_finite,
)  # fmt: skip
CAUSAL = (*COMMON, sees_no_future, prefix_is_consistent)


def checks_of(subject):
    """The properties of this model, without the compiled ones."""
    checks = CAUSAL if subject.kind in ("decoder", "prefix_decoder") else (*COMMON,)
    if subject.kind in ("decoder", "prefix_decoder"):
        checks = (*checks, cached_equals_full, state_contract, memories_equal_one_long_pass)
    else:
        checks = (*checks, memories_of_both_directions)
    if subject.kind == "prefix_decoder":
        checks = (*checks, prefix_is_seen_by_all)
    if subject.model.num_memory_slots:
        checks = (*checks, slots_over_segments)
    if subject.has_cross:
        checks = (*checks, context_padding)
    return (*checks, is_deterministic)


def failures(subject, checks):
    """The messages of all failed checks."""
    found = []
    for check in checks:
        try:
            check(subject)
        except Exception as error:  # a crash is a failed property like any other
            found.append(f"{check.__name__}: {type(error).__name__}: {error}")
    return found

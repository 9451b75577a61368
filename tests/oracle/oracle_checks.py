"""A model of the library against the oracle: whole rows, padding, packing, caches, segments, training."""

import random
import warnings
from functools import partial

import numpy as np
import oracle_model
import torch
from oracle_settings import Settings

import flagformer
from flagformer.flow import Constant
from rounding_noise import sensitivity

# fp64 rounding of models this small; a changed decision (a cluster, a bucket) has a far larger effect.
TIGHT = 1e-9
# A unit in the last place is 6e-8 in fp32 and 4e-3 in bf16; perturbed weights enlarge it some hundredfold.
ROUGH = {torch.float32: 1e-3, torch.bfloat16: 0.5}
# Selections by score flip where rounding decides.
CHOOSERS = ("num_clusters", "context_num_clusters", "sparse_topk", "ff_moe", "ff_pkm")
# Rotary frequencies and ALiBi's slopes are fp32 in a model of any dtype; the cosines of xPos are too.
FP32_COSINES = 1e-5
LONG = 300


class Wrong(AssertionError):
    """The library and the oracle differ."""


class Pair:
    """One mix of flags: the library's model with perturbed parameters, and two rows of different lengths."""

    def __init__(self, flags, seed):
        self.flags, self.settings = flags, Settings(flags)
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = exact(perturbed(flagformer.build(flags).double().eval(), seed))
        self.tight = FP32_COSINES if flags.get("rotary_xpos") else TIGHT
        self.weights = {k: v.numpy().copy() for k, v in self.model.state_dict().items()}
        rng = random.Random(f"inputs {seed}")
        self.lengths = (rng.randint(7, 12), rng.randint(2, 6))
        self.kinds = dict(flags.get("embed_num_tokens") or {})
        self.prefix = rng.randint(1, 4) if flags["model"] == "prefix_decoder" else 0
        self.reads_context = any(module.kind == "c" for module in self.settings.modules)
        width = flags.get("cross_attn_dim_context") or flags["dim"]
        self.contexts = [torch.randn(n, width, dtype=torch.float64) for n in (5, 3)]
        self.rows = [self.draw(n) for n in self.lengths]

    def draw(self, count):
        return torch.randint(self.flags["num_tokens"], (count,))

    def kind_ids(self, ids):
        """Extra ids, a function of the token and its position in the row, so that rows keep theirs."""
        return {name: ids % count for name, count in self.kinds.items()}

    def want(self, ids, row, **how):
        context = self.contexts[row].numpy() if self.reads_context else None
        kinds = {name: value.numpy() for name, value in self.kind_ids(ids).items()}
        how.setdefault("prefix", min(self.prefix, len(ids)))
        return oracle_model.read(self.flags, self.weights, ids.numpy(), context=context, kinds=kinds, **how)

    def side(self, rows, ids):
        """Keywords of a forward: contexts of these rows, extra ids, prefix."""
        given = {}
        if self.reads_context:
            most = max(len(self.contexts[row]) for row in rows)
            context = torch.zeros(len(rows), most, self.contexts[0].shape[-1], dtype=torch.float64)
            mask = torch.zeros(len(rows), most, dtype=torch.bool)
            for i, row in enumerate(rows):
                context[i, : len(self.contexts[row])] = self.contexts[row]
                mask[i, : len(self.contexts[row])] = True
            given |= {"context": context, "context_mask": mask}
        if self.kinds:
            given["embed_ids"] = self.kind_ids(ids)
        return given

    def prefixed(self, lengths):
        return (
            {"prefix_attn_len": torch.tensor([min(self.prefix, n) for n in lengths])} if self.prefix else {}
        )


def perturbed(model, seed):
    """Add noise to every parameter, and to centroids, which keep their norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def exact(model):
    """Convert constants to fp64, so that all else can be checked in fp64; `rounded` keeps them unchanged."""
    for module in model.modules():
        for held in vars(module).values():
            if isinstance(held, Constant):
                held._made[torch.device("cpu")] = torch.tensor(held.numbers, dtype=torch.float64)
    return model


def _numbers(x):
    return x.detach().double().numpy()


def difference(want, got):
    """The largest difference as a share of the largest number, or of 1."""
    return abs(got - want).max(initial=0.0) / max(abs(want).max(initial=0.0), 1.0)


def close(got, want, what, tolerance):
    got = _numbers(got)
    if got.shape != want.shape:
        raise Wrong(f"{what}: shape {got.shape}, not {want.shape}")
    worst = difference(want, got)
    if not worst <= tolerance:
        raise Wrong(f"{what}: differs by {worst:.2g}")


def whole(pair):
    """Two rows, the shorter padded on the right, and each one by itself."""
    for side in ("right", "left"):
        ids, mask = _padded(pair.rows, side)
        how = {"mask": mask} if side == "right" else {"seq_start_pos": (~mask).sum(1)}
        with torch.no_grad():
            got = pair.model(ids, **how, **pair.side((0, 1), ids), **pair.prefixed(pair.lengths))
        for row in (0, 1):
            close(
                got[row][mask[row]],
                pair.want(pair.rows[row], row).logits,
                f"padded on the {side}, row {row}",
                pair.tight,
            )


def _padded(rows, side):
    most = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), most, dtype=torch.long), torch.zeros(len(rows), most, dtype=torch.bool)
    for i, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(most - len(row), most)
        ids[i, part], mask[i, part] = row, True
    return ids, mask


def packed(pair):
    """Both rows packed into one; they share the context of row 0."""
    ids = torch.cat(pair.rows)[None]
    side = pair.side((0,), ids) | ({"prefix_attn_len": pair.prefix} if pair.prefix else {})
    if pair.prefix > min(pair.lengths):
        return
    with torch.no_grad():
        got = pair.model(ids, seq_lens=[list(pair.lengths)], **side)[0]
    parts = got.split(pair.lengths)
    for number, (part, row) in enumerate(zip(parts, pair.rows, strict=True)):
        close(part, pair.want(row, 0).logits, f"packed, sequence {number}", pair.tight)


def cached(pair):
    """A block and then single tokens through a decode state, padded on the left."""
    if not pair.settings.causal or not pair.model.can_cache:
        return
    ids, mask = _padded(pair.rows, "left")
    starts, block = (~mask).sum(1), max(pair.prefix, 2)
    rows = [pair.draw(max(pair.lengths)) for _ in (0, 1)]
    for begin, lengths in ((None, None), (starts, pair.lengths)):
        shown = torch.stack(rows) if begin is None else ids
        first = block if begin is None else int(starts.max()) + block
        first = min(first, shown.shape[1])
        state = pair.model.init_state(2, shown.shape[1], seq_start_pos=begin)
        prefix = pair.prefixed(lengths or (shown.shape[1],) * 2)
        parts = [_step(pair, state, shown[:, :first], pair.side((0, 1), shown[:, :first]) | prefix)]
        for t in range(first, shown.shape[1]):
            side = {k: v for k, v in pair.side((0, 1), shown[:, t : t + 1]).items() if "context" not in k}
            parts.append(_step(pair, state, shown[:, t : t + 1], side))
        got = torch.cat(parts, 1)
        for row in (0, 1):
            if begin is None:
                close(got[row], pair.want(rows[row], row).logits, f"cached, row {row}", pair.tight)
            else:
                want = pair.want(pair.rows[row], row).logits
                close(got[row][mask[row]], want, f"cached and padded on the left, row {row}", pair.tight)


def _step(pair, state, ids, side):
    with torch.no_grad():
        return pair.model(ids, state=state, **side)


def segments(pair):
    """Three consecutive segments, with memories of the previous tokens up to the limit."""
    kept, shift = pair.flags.get("max_mem_len"), pair.settings["shift_mem_down"]
    if not kept or (shift and pair.settings["shift_tokens"]):
        return
    parts, mems, streams, first = pair.rows[0].split(4), None, None, 0
    steps = [i for i, index in enumerate(pair.settings.order) if pair.settings.modules[index].kind == "a"]
    for number, part in enumerate(parts):
        side = pair.side((0,), part[None])
        prefix = pair.prefix if not number else 0
        side |= {"prefix_attn_len": prefix} if prefix else {}
        with torch.no_grad():
            got, mems = pair.model(part[None], mems=mems, return_mems=True, **side)
        memories = None
        if streams is not None:
            lowered = {a: streams[steps[(i + shift) % len(steps)]] for i, a in enumerate(steps)}
            memories = lowered if not pair.settings["shift_tokens"] else dict(enumerate(streams))
        want = pair.want(part, 0, memories=memories, first=first, prefix=prefix)
        close(got[0], want.logits, f"segment {number}", pair.tight)
        joined = want.streams
        if streams is not None:
            joined = [np.concatenate(two) for two in zip(streams, want.streams, strict=True)]
        streams, first = [stream[-kept:] for stream in joined], first + len(part)


def trained(pair):
    """The training forward, whose executor may recompute sublayers; these mixes have no randomness."""
    torch.manual_seed(0)
    ids = pair.rows[0][None]
    side = pair.side((0,), ids) | pair.prefixed(pair.lengths[:1])
    pair.model.train()
    try:
        got = pair.model(ids, **side)
        close(got[0], pair.want(pair.rows[0], 0).logits, "training", pair.tight)
        got.square().mean().backward()
        lost = [
            n for n, p in pair.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
        ]
        if lost:
            raise Wrong(f"training: gradients of {', '.join(lost)} are not finite")
    finally:
        pair.model.eval().zero_grad(set_to_none=True)


def long(pair):
    """A row long enough for the other kernels, by itself and padded on the left."""
    row = pair.draw(LONG)
    want = pair.want(row, 0).logits
    for padding in (0, 9):
        ids = torch.cat([torch.zeros(padding, dtype=torch.long), row])[None]
        how = {"seq_start_pos": torch.tensor([padding])} if padding else {}
        with torch.no_grad():
            side = pair.side((0,), ids) | pair.prefixed((LONG,))
            got = pair.model(ids, **how, **side)[0, padding:]
        close(got, want, f"{LONG} tokens after {padding} padding positions", pair.tight)


def rounded(pair):
    """fp32, and bf16 under autocast, within their rounding."""
    chooses = any(name.removeprefix("cross_").removeprefix("attn_") in CHOOSERS for name in pair.flags)
    if chooses and any("softclamp" in name for name in pair.flags):
        return  # clamped scores tie up to rounding, which then decides the top-k
    row = pair.rows[0]
    want, ids = pair.want(row, 0).logits, row[None]
    side = pair.side((0,), ids) | pair.prefixed(pair.lengths[:1])
    side |= {"context": side["context"].float()} if "context" in side else {}
    pair.model.float()
    try:
        for dtype in (torch.float32,) if chooses else tuple(ROUGH):
            half = dtype is torch.bfloat16
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                got = pair.model(ids, **side)[0]
            try:
                close(got, want, f"{dtype}", ROUGH[dtype])
            except Wrong:
                change = partial(difference, want)
                noise = sensitivity(pair.model, lambda: _numbers(pair.model(ids, **side)[0]), change, dtype)
                close(got, want, f"{dtype}", 3 * noise)
    finally:
        exact(pair.model.double()).load_state_dict({k: torch.tensor(v) for k, v in pair.weights.items()})


def future(pair):
    """No logit of a causal model depends on a later token, except in a prefix and under leaky selection."""
    leaky = pair.flags.get("routing_selection") == "leaky" or pair.flags.get("context_selection") == "leaky"
    if not pair.settings.causal or leaky:
        return
    row = pair.rows[0]
    other, cut = row.clone(), max(len(row) - 3, pair.prefix)
    other[cut:] = (other[cut:] + 1) % pair.flags["num_tokens"]
    side = pair.side((0,), row[None]) | pair.prefixed(pair.lengths[:1])
    side.pop("embed_ids", None)
    with torch.no_grad():
        got = [
            pair.model(ids[None], embed_ids=pair.kind_ids(ids[None]) or None, **side) for ids in (row, other)
        ]
    close(got[1][0, :cut], got[0][0, :cut].numpy(), "a later token is seen", pair.tight)


CHECKS = (whole, packed, cached, segments, trained, long, rounded, future)

"""Training over segments with the graph of one: memory replay (Memformer, arXiv:2010.06891, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flagformer.flow import RecurrentState
from flagformer.memory.replay import replay
from flagformer.ops.cross_entropy import cross_entropy
from flagformer.stack.inputs import check_padding
from flagformer.wrappers.inputs import check_ids
from flagformer.wrappers.memformer import Memformer
from flagformer.wrappers.requests import check_net, ids_and_targets
from flagformer.wrappers.segments import check_reach
from flagformer.wrappers.transformer import TransformerWrapper

Parts = Tensor | Sequence[Tensor | None] | None
LossOf = Callable[[Any, int], Tensor | None]


def memory_replay_backprop(
    model: Memformer,
    src: Tensor,
    tgt: Parts = None,
    src_mask: Tensor | None = None,
    tgt_mask: Parts = None,
    *,
    mems: Tensor | None = None,
    loss_fn: LossOf | None = None,
) -> Tensor:
    """Reads a source segment by segment and adds the gradients of the sum of all losses to the parameters'.

    They are exactly those of back-propagation through all segments, dropout included, and only one segment's
    activations are ever held: beside them a set of slots for each segment. All segments but the last are read
    twice; centroids of routing attention count the second time alone.

    Args:
        src: ids [B, S] of any length, read in segments of `enc_max_seq_len`; the last may be shorter.
        tgt: ids [B, T] of the last segment's target, or a list with a target or None for each segment.
        src_mask: bool [B, S], True for real tokens.
        tgt_mask: bool [B, T], or a list with one or None for each segment.
        mems: [B, M, D] of a text before; None: there was none. Gradients flow into it.
        loss_fn: `(results, number of the segment) -> loss or None`, in place of the decoder's loss; an
            encoder-only model needs one, as it has no loss of its own, and its auxiliary losses of training
            are added. Called again when the segment is read again.

    Returns:
        [number of segments], the losses without graph, as they were learned; 0 for segments without one.

    Raises:
        ValueError: naming the argument, what it was and what it must be.
    """
    _check_source(model, src, src_mask, tgt, loss_fn)
    sources = src.split(model.max_seq_len, dim=1)
    count = len(sources)
    masks = [None] * count if src_mask is None else src_mask.split(model.max_seq_len, dim=1)
    targets, target_masks = _for_segments("tgt", tgt, count), _for_segments("tgt_mask", tgt_mask, count)

    def read(number: int, held: RecurrentState | None) -> tuple[Tensor | None, RecurrentState]:
        slots = None if held is None else held.slots
        part = (sources[number], targets[number], slots, masks[number], target_masks[number])
        results, outputs = model(*part, return_outputs=True)
        loss = results.dec_out if loss_fn is None else _check_loss(loss_fn(results, number))
        if model.decoder is None and outputs.extra_loss is not None:
            loss = outputs.extra_loss if loss is None else loss + outputs.extra_loss
        return loss, RecurrentState.of_slots(results.mem)

    losses, left = replay(model, read, _start(model.encoder, mems, len(src)), count)
    assert left.slots is not None
    return torch.stack([left.slots.new_zeros(()) if loss is None else loss for loss in losses])


def train_segments(
    model: TransformerWrapper,
    x: Tensor,
    mask: Tensor | None = None,
    *,
    mems: RecurrentState | Tensor | None = None,
    ignore_index: int = -100,
) -> tuple[Tensor, RecurrentState]:
    """Reads a stream of tokens segment by segment, and adds the gradients of the cross entropy of x[:, 1:].

    They are exactly those of back-propagation of the mean through all segments, and only one segment's
    activations are ever held: beside them what each segment leaves. All segments but the last are read twice;
    centroids of routing attention count the second time alone. Memories of tokens (`max_mem_len`) carry no
    gradient, as in their paper. In training the auxiliary losses of the model are learned too, each segment's
    by its share of the tokens.

    Args:
        model: a causal model with `num_memory_slots`.
        x: ids [B, T], T at least 2, read in segments of `max_seq_len`; the last may be shorter.
            `ignore_index` stands where there is no token.
        mask: bool [B, T], True for real tokens; a target counts where it and the token before are real.
        mems: of the text before, as this or `return_mems` gave them; None: there was none.

    Returns:
        the mean cross entropy of each segment, in nats, without graph, 0 where no target counts; and memories
        without gradient, for the text that follows.

    Raises:
        ValueError: naming the argument, what it was and what it must be.
    """
    _check_stream(model)
    ids, targets = ids_and_targets(x, model, ignore_index, 0, mask)
    last, size = targets.shape[1], model.max_seq_len
    parts = [slice(place, min(place + size, last)) for place in range(0, last, size)]
    counts = torch.stack([(targets[:, part] != ignore_index).sum() for part in parts])
    totals: dict[int, Tensor] = {}

    def read(number: int, held: RecurrentState | None) -> tuple[Tensor | None, RecurrentState]:
        part = parts[number]
        out, left, extra = _read(model, ids[:, part], held, None if mask is None else mask[:, part])
        if not torch.is_grad_enabled():
            return None, left
        total = cross_entropy(model.to_logits(out), targets[:, part], ignore_index, "sum")
        totals[number] = total.detach()
        return total / counts.sum().clamp(min=1) + extra * (out.shape[1] / last), left

    _, left = replay(model, read, _start(model, mems, len(x)), len(parts))
    return torch.stack([totals[number] for number in range(len(parts))]) / counts.clamp(min=1), left


def _start(
    model: TransformerWrapper, mems: RecurrentState | Tensor | None, batch: int
) -> RecurrentState | None:
    if mems is None:
        return None
    slots, _ = model.slots.read(mems, batch)
    return mems if isinstance(mems, RecurrentState) else RecurrentState.of_slots(slots)


def _read(
    model: TransformerWrapper, ids: Tensor, mems: RecurrentState | None, mask: Tensor | None
) -> tuple[Tensor, RecurrentState, Tensor | float]:
    """Embeddings of a segment, what it leaves, and the sum of its auxiliary losses in training."""
    how: dict[str, Any] = {"mems": mems, "mask": mask, "return_mems": True, "return_embeddings": True}
    if not (model.training and model.has_losses):
        return *model(ids, **how), 0.0
    out, outputs = model(ids, return_losses=True, **how)
    extra = outputs.extra_loss
    return out, outputs.mems, 0.0 if extra is None else extra


def _check_source(model: Memformer, src: Tensor, src_mask: Any, tgt: Any, loss_fn: LossOf | None) -> None:
    if not isinstance(model, Memformer):
        raise ValueError(
            f"`model` must be a Memformer, but is {type(model).__name__}; `train_segments` is for decoders"
        )
    check_ids(src, model.encoder.num_tokens, "src")
    if src_mask is not None:
        check_padding("src_mask", src_mask, *src.shape)
    if model.decoder is None and tgt is not None:
        raise ValueError("`tgt` was given, but this model has no decoder (`encoder_only=True`)")
    empty = tgt is None or (isinstance(tgt, (list, tuple)) and all(one is None for one in tgt))
    if empty and loss_fn is None:
        name = "loss_fn" if model.decoder is None else "tgt"
        raise ValueError(f"`{name}` must be given, as nothing else says what is to be learned")
    if loss_fn is not None and not callable(loss_fn):
        raise ValueError(
            f"`loss_fn` must be a function of results and a segment's number, but is {loss_fn!r}"
        )


def _check_loss(loss: Any) -> Tensor | None:
    if loss is None or (isinstance(loss, Tensor) and not loss.dim()):
        return loss
    found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise ValueError(f"`loss_fn` must return one number as a tensor of shape [], or None, but gave {found}")


def _check_stream(model: TransformerWrapper) -> None:
    check_net(model, "model")
    if not model.num_memory_slots:
        raise ValueError("`model` must have slots to learn through: build it with `num_memory_slots`")
    check_reach(model, "model")


def _for_segments(name: str, parts: Parts, count: int) -> Sequence[Tensor | None]:
    """One for each segment; a tensor belongs to the last."""
    if parts is None or isinstance(parts, Tensor):
        return [*[None] * (count - 1), parts]
    wanted = f"one tensor, of the last segment, or a list with one or None for each of the {count} segments"
    if not isinstance(parts, (list, tuple)):
        raise ValueError(f"`{name}` must be {wanted}, but is {type(parts).__name__}")
    strange = [type(part).__name__ for part in parts if part is not None and not isinstance(part, Tensor)]
    if len(parts) != count or strange:
        found = len(parts) if not strange else f"{len(parts)}, of {' and '.join(sorted(set(strange)))}"
        raise ValueError(f"`{name}` must be {wanted}, but holds {found}")
    return parts

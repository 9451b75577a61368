"""Training over segments by memory replay back-propagation (Memformer, arXiv:2010.06891, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flagformer.flow import Outputs, RecurrentState
from flagformer.inputs.requests import check_net, ids_and_targets
from flagformer.inputs.segments import check_reach
from flagformer.inputs.tokens import check_ids
from flagformer.memory.replay import replay
from flagformer.ops.cross_entropy import cross_entropy
from flagformer.stack.inputs import check_padding
from flagformer.wrappers.memformer import Memformer
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
    condition: Tensor | None = None,
) -> Tensor:
    """Read a source segment by segment and accumulate the gradients of the sum of all losses.

    The gradients are those of back-propagation through all segments, dropout included. Memory holds the
    activations of one segment and a set of slots per segment. All segments except the last are read twice;
    the statistics of routing centroids count the second time only.

    Args:
        src: ids [B, S] of any length, read in segments of `enc_max_seq_len`; the last may be shorter.
        tgt: ids [B, T] of the last segment's target, or a list with a target or None for each segment.
        src_mask: bool [B, S], True for tokens.
        tgt_mask: bool [B, T], or a list with one or None for each segment.
        mems: [B, M, D] of the text before; None: there is none. Gradients flow into it.
        loss_fn: `(results, index of the segment) -> loss or None`, in place of the decoder's loss. An
            encoder-only model needs one; its auxiliary losses are added. It is called in both readings of a
            segment.
        condition: [B, C], the same for all segments, for models that read one (`adaptive_layernorm`).

    Returns:
        [number of segments], the losses without graph; 0 for segments without one.

    Raises:
        ValueError: names the argument, its value and the values allowed.
    """
    _check_source(model, src, src_mask, tgt, loss_fn)
    sources = src.split(model.max_seq_len, dim=1)
    count = len(sources)
    masks = [None] * count if src_mask is None else src_mask.split(model.max_seq_len, dim=1)
    targets, target_masks = _for_segments("tgt", tgt, count), _for_segments("tgt_mask", tgt_mask, count)

    def read(index: int, state: RecurrentState | None) -> tuple[Tensor | None, RecurrentState]:
        slots = None if state is None else state.slots
        segment = (sources[index], targets[index], slots, masks[index], target_masks[index])
        results, outputs = model(*segment, condition=condition, return_outputs=True)
        loss = results.dec_out if loss_fn is None else _check_loss(loss_fn(results, index))
        return _sum(loss, model, outputs), RecurrentState.of_slots(results.mem)

    losses, last = replay(model, read, _start(model.encoder, mems, len(src)), count)
    assert last.slots is not None
    return torch.stack([last.slots.new_zeros(()) if loss is None else loss for loss in losses])


def train_segments(
    model: TransformerWrapper,
    x: Tensor,
    mask: Tensor | None = None,
    *,
    mems: RecurrentState | Tensor | None = None,
    ignore_index: int = -100,
    condition: Tensor | None = None,
) -> tuple[Tensor, RecurrentState]:
    """Read a stream of tokens segment by segment and accumulate the gradients of its cross entropy.

    The gradients are those of back-propagation of the mean through all segments. Memory holds the activations
    of one segment and the recurrent state after each segment. All segments except the last are read twice;
    the statistics of routing centroids count the second time only. Memories of tokens (`max_mem_len`) carry
    no gradient, as in their paper. In training the auxiliary losses of the model are added, each segment's
    weighted by its share of the tokens.

    Args:
        model: a causal model with `num_memory_slots`.
        x: ids [B, T], T at least 2, read in segments of `max_seq_len`; the last may be shorter.
            `ignore_index` marks padding.
        mask: bool [B, T], True for tokens; a target counts if it and the token before are valid.
        mems: memories of the text before, from this function or `return_mems`; None: there are none.
        condition: [B, C], the same for all segments, for models that read one (`adaptive_layernorm`).

    Returns:
        the mean cross entropy of each segment, in nats, without graph, 0 without targets; and memories
        without gradient, for the text that follows.

    Raises:
        ValueError: names the argument, its value and the values allowed.
    """
    _check_stream(model)
    ids, targets = ids_and_targets(x, model, ignore_index, 0, mask)
    last, size = targets.shape[1], model.max_seq_len
    segments = [slice(start, min(start + size, last)) for start in range(0, last, size)]
    counts = torch.stack([(targets[:, segment] != ignore_index).sum() for segment in segments])
    totals: dict[int, Tensor] = {}

    def read(index: int, state: RecurrentState | None) -> tuple[Tensor | None, RecurrentState]:
        segment = segments[index]
        out, new, extra = _read(model, ids[:, segment], state, _part(mask, segment), condition)
        if not torch.is_grad_enabled():
            return None, new
        total = cross_entropy(model.to_logits(out), targets[:, segment], ignore_index, "sum")
        totals[index] = total.detach()
        return total / counts.sum().clamp(min=1) + extra * (out.shape[1] / last), new

    _, state = replay(model, read, _start(model, mems, len(x)), len(segments))
    return torch.stack([totals[index] for index in range(len(segments))]) / counts.clamp(min=1), state


def _part(mask: Tensor | None, segment: slice) -> Tensor | None:
    return None if mask is None else mask[:, segment]


def _start(
    model: TransformerWrapper, mems: RecurrentState | Tensor | None, batch: int
) -> RecurrentState | None:
    if mems is None:
        return None
    slots, _ = model.slots.read(mems, batch)
    return mems if isinstance(mems, RecurrentState) else RecurrentState.of_slots(slots)


def _read(
    model: TransformerWrapper,
    ids: Tensor,
    mems: RecurrentState | None,
    mask: Tensor | None,
    condition: Tensor | None,
) -> tuple[Tensor, RecurrentState, Tensor | float]:
    """Embeddings of a segment, its memories, and the sum of its auxiliary losses in training."""
    kwargs: dict[str, Any] = {"mems": mems, "mask": mask, "return_mems": True, "return_embeddings": True}
    kwargs["condition"] = condition
    if not (model.training and model.has_losses):
        return *model(ids, **kwargs), 0.0
    out, outputs = model(ids, return_losses=True, **kwargs)
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
        raise ValueError(f"`{name}` must be given, because there is no loss without it")
    if loss_fn is not None and not callable(loss_fn):
        raise ValueError(f"`loss_fn` must be a function of results and a segment's index, but is {loss_fn!r}")


def _sum(loss: Tensor | None, model: Memformer, outputs: Outputs) -> Tensor | None:
    """The loss of a segment with the auxiliary losses of an encoder alone; a decoder's loss includes them."""
    extra = None if model.decoder is not None else outputs.extra_loss
    return loss if extra is None else extra if loss is None else loss + extra


def _check_loss(loss: Any) -> Tensor | None:
    if loss is None or (isinstance(loss, Tensor) and not loss.dim()):
        return loss
    found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise ValueError(f"`loss_fn` must return one number as a tensor of shape [], or None, but gave {found}")


def _check_stream(model: TransformerWrapper) -> None:
    check_net(model, "model")
    if not model.num_memory_slots:
        raise ValueError("`model` must have memory slots: build it with `num_memory_slots`")
    check_reach(model, "model")


def _for_segments(name: str, parts: Parts, count: int) -> Sequence[Tensor | None]:
    """Return one value for each segment; a tensor belongs to the last."""
    if parts is None or isinstance(parts, Tensor):
        return [*[None] * (count - 1), parts]
    wanted = f"one tensor for the last segment, or a list with a tensor or None for each of {count} segments"
    if not isinstance(parts, (list, tuple)):
        raise ValueError(f"`{name}` must be {wanted}, but is {type(parts).__name__}")
    wrong = [type(part).__name__ for part in parts if part is not None and not isinstance(part, Tensor)]
    if len(parts) != count or wrong:
        found = len(parts) if not wrong else f"{len(parts)}, of {' and '.join(sorted(set(wrong)))}"
        raise ValueError(f"`{name}` must be {wanted}, but holds {found}")
    return parts

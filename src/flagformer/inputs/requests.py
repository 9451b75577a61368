"""Checks and arguments shared by the loss and by generation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.generation import Prompts
from flagformer.head.heads import NoHead
from flagformer.inputs.tokens import check_ids, check_integers, prefix_lengths
from flagformer.stack.inputs import check_padding, check_tensor
from flagformer.stack.layers import PrefixDecoder
from flagformer.stack.layouts import read_layout
from flagformer.stack.refusals import refuse_mixer_arguments

SeqLens = Tensor | Sequence[Sequence[int]]


def check_request(num_tokens: int, seq_len: int, eos_token: int | None) -> None:
    """Check `seq_len` and `eos_token`."""
    if isinstance(seq_len, bool) or not isinstance(seq_len, int) or seq_len < 1:
        raise ValueError(f"`seq_len` must be a whole number of at least 1, but is {seq_len!r}")
    last = num_tokens - 1
    if eos_token is not None and (not isinstance(eos_token, int) or not 0 <= eos_token <= last):
        raise ValueError(f"`eos_token` must be an id from 0 to {last} or None, but is {eos_token!r}")


def ids_and_targets(
    x: Tensor, net: Any, ignore_index: int, pad_value: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x [B, T] with `ignore_index` among its ids -> ids with `pad_value` in its place, and the targets
    x[:, 1:], long; with `mask` [B, T] only valid targets after a valid token count."""
    check_tensor("x", x)
    if x.dim() != 2 or x.shape[1] < 2:
        raise ValueError(f"`x` must be of shape [B, T] with T at least 2, but is {list(x.shape)}")
    check_integers("x", x)
    ids = x.masked_fill(x == ignore_index, pad_value)
    check_ids(ids, net.num_tokens)
    targets = x[:, 1:].long()
    if mask is not None:
        check_padding("mask", mask, *x.shape)
        targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), ignore_index)
    return ids, targets


def generation_window(net: Any, prompt_len: int, seq_len: int, restrict: bool) -> int | None:
    """The attention window of generation; None for no limit. The last new token is not read."""
    longest = net.max_seq_len
    if prompt_len + seq_len - 1 <= longest:
        return None
    if getattr(net, "num_memory_slots", 0):
        raise ValueError(
            f"`seq_len` is {seq_len}, and {prompt_len} prompt tokens with it are more than one segment "
            f"(`max_seq_len` = {longest}) of a model with slots: use XLAutoregressiveWrapper, or "
            "`model.stream(batch_size)`"
        )
    if net.absolute_positions:
        most = longest + 1 - prompt_len
        limit = f"must be at most {most} after {prompt_len} prompt tokens, but is {seq_len}"
        full = f"is {seq_len}, but there is no position left after {prompt_len} prompt tokens"
        raise ValueError(
            f"`seq_len` {limit if most > 0 else full}: this model has absolute positions for max_seq_len "
            f"{longest} tokens; shorten either, or build with relative ones such as `rotary_pos_emb=True`"
        )
    if restrict and longest:
        fix = "give `restrict_to_max_seq_len=False`, or generate no more than `max_seq_len` tokens in total"
        refuse_mixer_arguments(net.attn_layers, {"restrict_to_max_seq_len": True}, fix)
    return longest if restrict and longest else None


def use_cache(net: Any, cache_kv: bool) -> bool:
    """Whether to use a decode state; warn if `cache_kv` is True and the model has none."""
    if cache_kv and not net.can_cache:
        warnings.warn(
            "`cache_kv` has no effect: this model has no decode state, every step reads the whole row",
            stacklevel=6,
        )
    return cache_kv and net.can_cache


def check_net(net: nn.Module, name: str = "net") -> None:
    if hasattr(net, "dim_in"):
        raise ValueError(
            f"`{name}` must be a model of token ids, but is {type(net).__name__}, whose inputs and outputs "
            "are vectors: compute a loss of its outputs"
        )
    layers = getattr(net, "attn_layers", None)
    if layers is None:
        inner = hasattr(getattr(net, "net", None), "attn_layers")
        own = callable(getattr(net, "generate", None))
        hint = "; give its `.net`, a TransformerWrapper" if inner else ""
        hint += f"{' or' if inner else ';'} call its own `generate`" if own else ""
        raise ValueError(f"`{name}` must be a TransformerWrapper, but is {type(net).__name__}{hint}")
    if isinstance(getattr(net, "head", None), NoHead):
        raise ValueError(f"`{name}` must give logits, but was built with `return_only_embed`; leave that out")
    logits = getattr(net, "logits_dim", net.num_tokens)
    if logits != net.num_tokens:
        raise ValueError(
            f"`{name}` must give a logit for each of its {net.num_tokens} tokens, but `logits_dim` is "
            f"{logits}"
        )
    if not layers.causal and not isinstance(layers, PrefixDecoder):
        raise ValueError(
            f"`{name}` must be causal, but its layers ({type(layers).__name__}) attend to later tokens; "
            'use `Decoder`, or `"model": "decoder"`'
        )


def check_pad(net: Any, pad_value: int) -> None:
    if not 0 <= pad_value < net.num_tokens:
        raise ValueError(f"`pad_value` must be an id from 0 to {net.num_tokens - 1}, but is {pad_value}")


def prefix_of_prompts(prefix: int | Tensor, prompts: Prompts) -> Tensor:
    """Return prefix lengths [B] or [1], checked against the prompts."""
    lengths = prefix_lengths(prefix, prompts.ids)
    prompt_lens = prompts.ids.shape[1] - (0 if prompts.starts is None else prompts.starts)
    if bool((lengths > prompt_lens).any()) or bool((lengths < 0).any()):
        raise ValueError(
            f"`prefix_attn_len` must be from 0 to the length of each prompt, but is {lengths.tolist()} "
            f"for lengths {torch.as_tensor(prompt_lens).tolist()}"
        )
    return lengths


def first_step_kwargs(
    prompts: Prompts, context: Tensor | None, context_mask: Tensor | None, prefix: int | Tensor | None
) -> dict[str, Any]:
    """Keyword arguments of the first forward of decoding."""
    kwargs: dict[str, Any] = {}
    if context is not None:
        kwargs |= {"context": context, "context_mask": context_mask}
    if prefix is not None:
        kwargs["prefix_attn_len"] = prefix_of_prompts(prefix, prompts)
    return kwargs


def prepend_kwargs(embeds: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
    """Prepended embeddings as keyword arguments of a forward, which checks the rest."""
    if embeds is not None:
        check_tensor("prepend_embeds", embeds)
        if embeds.dim() != 3:
            raise ValueError(f"`prepend_embeds` must have shape [B, P, E], but has {list(embeds.shape)}")
    given = {"prepend_embeds": embeds, "prepend_mask": mask}
    return {name: value for name, value in given.items() if value is not None}


def packed_targets(seq_lens: SeqLens, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For sequences packed in `ids` [B, T]: their lengths without the last column; bool [B, T - 1], True for
    targets ids[:, 1:] that follow a token of their own sequence; the position of each token."""
    layout = read_layout(ids.shape[0], ids.shape[1], ids.device, seq_lens=seq_lens)
    valid, segment_ids = layout.valid, layout.segment_ids
    assert valid is not None
    assert segment_ids is not None
    lengths = ids.new_zeros(ids.shape[0], int(segment_ids.max()) + 1)
    lengths.scatter_add_(1, segment_ids[:, :-1], valid[:, :-1].to(lengths.dtype))
    return lengths, valid[:, 1:] & (segment_ids[:, 1:] == segment_ids[:, :-1]), layout.positions

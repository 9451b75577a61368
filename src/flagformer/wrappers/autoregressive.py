"""Next-token training and generation around a causal language model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flow import Outputs
from flagformer.generation import (
    Ending,
    LogitsFilter,
    PromptLike,
    Prompts,
    Sampler,
    bind_filter,
    decode,
    evaluating,
    line_up,
    read_prompts,
)
from flagformer.head.heads import NoHead
from flagformer.stack.inputs import check_padding
from flagformer.stack.layers import PrefixDecoder
from flagformer.wrappers.inputs import check_ids, layout_of, prefix_lengths

SeqLens = Tensor | Sequence[Sequence[int]]


class AutoregressiveWrapper(nn.Module):
    """The loss of next tokens, and generation, for a causal `TransformerWrapper`.

    Args:
        net: a causal model, or one of a PrefixDecoder; others are refused with ValueError.
        ignore_index: a target of this value does not count; `x` may hold it as padding.
        pad_value: the id read in its place, and written behind a row that has ended.
    """

    net: Any  # a TransformerWrapper, or what answers like one

    def __init__(self, net: nn.Module, ignore_index: int = -100, pad_value: int = 0) -> None:
        super().__init__()
        _check_net(net)
        self.net = net
        if not 0 <= pad_value < self.net.num_tokens:
            raise ValueError(
                f"`pad_value` must be an id from 0 to {self.net.num_tokens - 1}, but is {pad_value}"
            )
        self.ignore_index = ignore_index
        self.pad_value = pad_value
        self.training = net.training

    def forward(
        self,
        x: Tensor,
        return_outputs: bool = False,
        *,
        mask: Tensor | None = None,
        seq_lens: SeqLens | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Outputs]:
        """Mean cross entropy, in nats, of x[:, 1:] given what stands before.

        Args:
            x: ids [B, T], T at least 2; the model reads the first T - 1.
            return_outputs: return (loss, Outputs), with the logits and embeddings of the T - 1 tokens read.
            mask: bool [B, T], True for real tokens; a target counts where it and the token before are real.
            seq_lens: lengths of the sequences packed in each row; the first token of each is no target.
            context: [B, S, D] for models with cross attention.
            context_mask: bool [B, S], True for real places of the context.
            prefix_attn_len: of a PrefixDecoder, one number or [B]: so many first tokens of each row (or
                packed sequence) see each other, and are no targets.
            embed_ids: [B, T] for each name in the model's `embed_num_tokens`, what goes with each token.

        The loss is NaN where no target counts.
        """
        if x.ndim != 2 or x.shape[1] < 2:
            raise ValueError(f"`x` must be of shape [B, T] with T at least 2, but is {list(x.shape)}")
        ids = x.masked_fill(x == self.ignore_index, self.pad_value)
        check_ids(ids, self.net.num_tokens)
        targets = x[:, 1:]
        side: dict[str, Any] = {}
        places = torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None:
            check_padding("mask", mask, *x.shape)
            targets = targets.masked_fill(~(mask[:, 1:] & mask[:, :-1]), self.ignore_index)
            side["mask"] = mask[:, :-1]
        if seq_lens is not None:
            side["seq_lens"], counts, places = _packed(seq_lens, ids)
            targets = targets.masked_fill(~counts, self.ignore_index)
        if prefix_attn_len is not None:
            side["prefix_attn_len"] = prefix_attn_len
            behind = places[:, 1:] >= prefix_lengths(prefix_attn_len, ids)[:, None]
            targets = targets.masked_fill(~behind, self.ignore_index)
        if context is not None:
            side |= {"context": context, "context_mask": context_mask}
        if embed_ids is not None:
            side["embed_ids"] = {name: value[:, :-1] for name, value in embed_ids.items()}
        logits, embeddings = self.net(ids[:, :-1], return_logits_and_embeddings=True, **side)
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=self.ignore_index
        )
        return (loss, Outputs(embeddings, logits)) if return_outputs else loss

    def generate(
        self,
        prompts: PromptLike,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | Sequence[int] | None = None,
        filter_logits_fn: str | LogitsFilter | None = "top_k",
        filter_kwargs: Mapping[str, Any] | None = None,
        restrict_to_max_seq_len: bool = True,
        cache_kv: bool = True,
        seed: int | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """New tokens after each prompt: long [B, seq_len], or [seq_len] for one prompt without batch.

        Args:
            prompts: ids [B, T] or [T], a list of 1-d tensors or lists of ints of any lengths, or one list of
                ints; each row gets what it would get alone.
            seq_len: number of new tokens, at least 1.
            eos_token: a row ends with it, the rest is `pad_value`; prompts are not searched for it.
            temperature: divides the filtered logits; 0 takes the most likely token and ignores the filter.
            prompt_lens: [B] tokens per row of right-padded `prompts`.
            filter_logits_fn: "top_k" (a tenth of the vocabulary unless told), "top_p", "min_p", "top_a", a
                function from logits [B, V] to logits [B, V], or None to draw from all tokens.
            filter_kwargs: its settings, such as {"k": 20}, {"thres": 0.9} or {"min_p": 0.1}.
            restrict_to_max_seq_len: every token sees the last `max_seq_len` tokens at most; False: all.
            cache_kv: read each token once; False reads the whole row at every step and gives the same tokens.
            seed: makes the draws repeat, by a generator of their own; None uses torch's global generator.
            context: [B, S, D] for models with cross attention.
            context_mask: bool [B, S], True for real places of the context.
            prefix_attn_len: of a PrefixDecoder, one number or [B]: so many first tokens of each prompt see
                each other; at most the prompt's length.
            embed_ids: [B, L] for each name in the model's `embed_num_tokens`: what goes with the first,
                second, ... token of each row, prompt and new ones; L covers the longest prompt at least, and
                tokens beyond L get the last.

        Past `max_seq_len`, cached or not: a model with absolute positions refuses the call when prompt and
        new tokens (the last is not read back) exceed it; others go on, as `restrict_to_max_seq_len` says.
        Raises ValueError for anything that cannot be used. Every module is left in the mode it had.
        """
        self._check_request(seq_len, eos_token)
        device = next(self.net.parameters()).device
        sample = Sampler(temperature, bind_filter(filter_logits_fn, filter_kwargs), seed, device)
        aligned = read_prompts(prompts, prompt_lens, self.net.num_tokens, self.pad_value, device)
        window = self._window(aligned.ids.shape[1], seq_len, restrict_to_max_seq_len)
        side: dict[str, Any] = {}
        if context is not None:
            side |= {"context": context, "context_mask": context_mask}
        if prefix_attn_len is not None:
            side["prefix_attn_len"] = _prefix_of_prompts(prefix_attn_len, aligned)
        ending = Ending(seq_len, eos_token, self.pad_value)
        beside = line_up(embed_ids or {}, aligned, aligned.ids.shape[1] + seq_len)
        with evaluating(self.net):
            cached = cache_kv and self._can_cache()
            new = decode(self.net, aligned, ending, sample, window, cached, side, beside)
        return new if aligned.batched else new[0]

    def _check_request(self, seq_len: int, eos_token: int | None) -> None:
        if isinstance(seq_len, bool) or not isinstance(seq_len, int) or seq_len < 1:
            raise ValueError(f"`seq_len` must be a whole number of at least 1, but is {seq_len!r}")
        last = self.net.num_tokens - 1
        if eos_token is not None and (not isinstance(eos_token, int) or not 0 <= eos_token <= last):
            raise ValueError(f"`eos_token` must be an id from 0 to {last} or None, but is {eos_token!r}")

    def _window(self, prompt_len: int, seq_len: int, restrict: bool) -> int | None:
        """How far a token sees, None where nothing limits it. The last new token is not read back."""
        longest = self.net.max_seq_len
        if prompt_len + seq_len - 1 <= longest:
            return None
        if self.net.absolute_positions:
            most = longest + 1 - prompt_len
            room = f"must be at most {most} after {prompt_len} prompt tokens, but is {seq_len}"
            none = f"is {seq_len}, but {prompt_len} prompt tokens leave no room"
            raise ValueError(
                f"`seq_len` {room if most > 0 else none}: this model has absolute positions for max_seq_len "
                f"{longest} tokens; shorten either, or build with relative ones such as `rotary_pos_emb=True`"
            )
        return longest if restrict and longest else None

    def _can_cache(self) -> bool:
        if not self.net.can_cache:
            warnings.warn(
                "`cache_kv` has no effect: this model has no decode state, every step reads the whole row",
                stacklevel=3,
            )
        return self.net.can_cache


def _check_net(net: nn.Module) -> None:
    layers = getattr(net, "attn_layers", None)
    if layers is None:
        raise ValueError(f"`net` must be a TransformerWrapper, but is {type(net).__name__}")
    if isinstance(getattr(net, "head", None), NoHead):
        raise ValueError("`net` must give logits, but was built with `return_only_embed`; leave that out")
    logits = getattr(net, "logits_dim", net.num_tokens)
    if logits != net.num_tokens:
        raise ValueError(
            f"`net` must give a logit for each of its {net.num_tokens} tokens, but `logits_dim` is {logits}"
        )
    if not layers.causal and not isinstance(layers, PrefixDecoder):
        raise ValueError(
            f"`net` must be causal, but its layers ({type(layers).__name__}) let tokens see later ones; "
            'use `Decoder`, or `"model": "decoder"`'
        )


def _prefix_of_prompts(prefix: int | Tensor, prompts: Prompts) -> Tensor:
    """[B] or [1], checked against the prompts."""
    lengths = prefix_lengths(prefix, prompts.ids)
    held = prompts.ids.shape[1] - (0 if prompts.starts is None else prompts.starts)
    if bool((lengths > held).any()) or bool((lengths < 0).any()):
        raise ValueError(
            f"`prefix_attn_len` must be from 0 to the length of each prompt, but is {lengths.tolist()} "
            f"for lengths {torch.as_tensor(held).tolist()}"
        )
    return lengths


def _packed(seq_lens: SeqLens, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of sequences packed in `ids` [B, T]: their lengths without the last column; which of the targets
    ids[:, 1:] follow a token of their own sequence, bool [B, T - 1]; each token's place in its sequence."""
    layout = layout_of(ids, None, mask=None, seq_start_pos=None, seq_lens=seq_lens, pos=None)
    real, segments = layout.padding, layout.segments
    assert real is not None
    assert segments is not None
    lengths = ids.new_zeros(len(ids), int(segments.max()) + 1)
    lengths.scatter_add_(1, segments[:, :-1], real[:, :-1].to(lengths.dtype))
    return lengths, real[:, 1:] & (segments[:, 1:] == segments[:, :-1]), layout.positions

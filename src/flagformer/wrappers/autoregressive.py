"""Next-token training and generation around a causal language model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.flow import Outputs
from flagformer.generation import (
    Amateur,
    ContrastiveDecoding,
    LogitsFilter,
    PromptLike,
    Sampler,
    StoppingCriteria,
    align_token_ids,
    bind_filter,
    decode,
    evaluating,
    is_number,
    read_prompts,
    read_settings,
    search,
)
from flagformer.ops.cross_entropy import chunked_cross_entropy, cross_entropy
from flagformer.ops.drop import forgetful_causal_mask
from flagformer.ops.home import home_of
from flagformer.ops.sharded import as_session
from flagformer.stack.inputs import check_size
from flagformer.stack.whole import Whole
from flagformer.wrappers.inputs import prefix_lengths
from flagformer.wrappers.requests import (
    SeqLens,
    check_net,
    check_pad,
    check_request,
    first_step_kwargs,
    generation_window,
    ids_and_targets,
    packed_targets,
    prepend_kwargs,
    use_cache,
)
from flagformer.wrappers.unsaved import Unsaved
from flagformer.wrappers.z_loss import adds_z_loss


class AutoregressiveWrapper(Unsaved, Whole):
    """The loss of next tokens, and generation, for a causal `TransformerWrapper`.

    Args:
        net: a causal model, or one of a PrefixDecoder; others are refused with ValueError.
        ignore_index: a target of this value does not count; `x` may hold it as padding.
        pad_value: the id read in its place, and written behind a row that has ended.
        mask_prob: share of earlier tokens that no token sees in training, drawn anew for each row and forward
            (forgetful causal masking, arXiv:2210.13432); the first token of a sequence stays.
        add_attn_z_loss: whether the loss in training holds the z-loss of attention, with the net's
            `attn_z_loss_weight`, or 1e-4; None: when the net was built with a weight. In eval mode the loss
            is the cross entropy alone.
        loss_chunks: logits and their gradients are made for so many parts of the tokens, one after the other:
            never [B, T, V] at once.
    """

    net: Any  # a TransformerWrapper, or what answers like one
    saving = (
        "`model.net.save(directory)` writes weights and flags, and "
        "`AutoregressiveWrapper(flagformer.load(directory))` wraps them"
    )

    def __init__(
        self,
        net: nn.Module,
        ignore_index: int = -100,
        pad_value: int = 0,
        mask_prob: float = 0.0,
        add_attn_z_loss: bool | None = None,
        loss_chunks: int = 1,
    ) -> None:
        super().__init__()
        check_net(net)
        self.adds_z_loss = adds_z_loss(net, add_attn_z_loss)
        self.net = net
        check_pad(self.net, pad_value)
        if not is_number(mask_prob) or not 0 <= mask_prob < 1:
            raise ValueError(f"`mask_prob` must be at least 0 and below 1, but is {mask_prob!r}")
        check_size("loss_chunks", loss_chunks)
        self.mask_prob, self.loss_chunks = mask_prob, loss_chunks
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
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Outputs]:
        """Mean cross entropy, in nats, of x[:, 1:] given what stands before; see `add_attn_z_loss` for more.

        In training the auxiliary losses of the net are added (of routing attention, of mixtures of experts).

        Args:
            x: ids [B, T], T at least 2; the model reads the first T - 1.
            return_outputs: return (loss, Outputs), with the embeddings of the T - 1 tokens read and, without
                `loss_chunks`, their logits.
            mask: bool [B, T], True for real tokens; a target counts where it and the token before are real.
            seq_lens: lengths of the sequences packed in each row; the first token of each is no target.
            context: [B, S, D] for models with cross attention.
            context_mask: bool [B, S], True for real places of the context.
            prefix_attn_len: of a PrefixDecoder, one number or [B]: so many first tokens of each row (or
                packed sequence) see each other, and are no targets.
            embed_ids: [B, T] for each name in the model's `embed_num_tokens`, what goes with each token.
            prepend_embeds: [B, P, E] in front of the tokens, as in the model's forward; no targets.
            prepend_mask: bool [B, P], True for real ones.

        The loss is NaN where no target counts.
        """
        ids, targets = ids_and_targets(x, self.net, self.ignore_index, self.pad_value, mask)
        side: dict[str, Any] = {}
        places = torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None:
            side["mask"] = mask[:, :-1]
        if seq_lens is not None:
            side["seq_lens"], counts, places = packed_targets(seq_lens, ids)
            targets = targets.masked_fill(~counts, self.ignore_index)
        if prefix_attn_len is not None:
            side["prefix_attn_len"] = prefix_attn_len
            behind = places[:, 1:] >= prefix_lengths(prefix_attn_len, ids)[:, None]
            targets = targets.masked_fill(~behind, self.ignore_index)
        if context is not None:
            side |= {"context": context, "context_mask": context_mask}
        if self.training and self.mask_prob:
            real = side.get("mask", torch.ones_like(ids[:, :-1], dtype=torch.bool))
            side["attn_mask"] = forgetful_causal_mask(real, places[:, :-1], self.mask_prob)
        if embed_ids is not None:
            side["embed_ids"] = {name: value[:, :-1] for name, value in embed_ids.items()}
        side |= prepend_kwargs(prepend_embeds, prepend_mask)
        front = 0 if prepend_embeds is None else prepend_embeds.shape[1]
        if "attn_mask" in side:
            side["attn_mask"] = F.pad(side["attn_mask"], (front, 0, front, 0), value=True)
        outputs = self._read(ids[:, :-1], side, front)
        loss = self._cross_entropy(outputs, targets)
        if outputs.extra_loss is not None:
            loss = loss + outputs.extra_loss
        return (loss, outputs) if return_outputs else loss

    def _read(self, ids: Tensor, side: Mapping[str, Any], front: int) -> Outputs:
        """What the net makes of [B, T] behind so many prepended embeddings, with the losses that count in
        training; without logits where these are made in chunks."""
        whole = self.loss_chunks == 1
        losses = getattr(self.net, "has_losses", False)
        if self.training and (losses or self.adds_z_loss):
            asked = {"return_losses": losses, "return_attn_z_loss": self.adds_z_loss}
            _, outputs = self.net(ids, return_embeddings=not whole, **asked, **side)
        elif whole:
            logits, embeddings = self.net(ids, return_logits_and_embeddings=True, **side)
            outputs = Outputs(embeddings, logits)
        else:
            outputs = Outputs(self.net(ids, return_embeddings=True, **side))
        logits = None if outputs.logits is None else outputs.logits[:, front:]
        return replace(outputs, logits=logits, embeddings=outputs.embeddings[:, front:])

    def _cross_entropy(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Mean over `targets` [B, T], in fp32 or better."""
        if outputs.logits is not None:
            return cross_entropy(outputs.logits, targets, self.ignore_index)
        return chunked_cross_entropy(
            self.net.to_logits, outputs.embeddings, targets, self.ignore_index, self.loss_chunks
        )

    def update_kmeans(self) -> None:
        """Moves the centroids of routing attention: once for each step of the optimizer, on all ranks."""
        update_kmeans(self)

    @as_session
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
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        contrastive_decode_kwargs: Mapping[str, float] | None = None,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
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
            amateur_model: one weaker model or several, of the same vocabulary and inputs: tokens are drawn
                from what this one likes more (contrastive decoding, arXiv:2309.09117).
            contrastive_decode_kwargs: {"beta": 0.5, "alpha": 0.1}: logits become (1 + beta) * own - beta *
                the amateur's, among tokens of at least alpha times the highest probability.
            prepend_embeds: [B, P, E] in front of each prompt, as in the model's forward; they stay in sight
                past `max_seq_len`.
            prepend_mask: bool [B, P], True for real ones.

        Past `max_seq_len`, cached or not: a model with absolute positions refuses the call when prompt and
        new tokens (the last is not read back) exceed it; others go on, as `restrict_to_max_seq_len` says.
        Raises ValueError for anything that cannot be used. Every module is left in the mode it had.
        """
        check_request(self.net.num_tokens, seq_len, eos_token)
        device = home_of(self.net)[0]
        sample = Sampler(temperature, bind_filter(filter_logits_fn, filter_kwargs), seed, device)
        aligned = read_prompts(prompts, prompt_lens, self.net.num_tokens, self.pad_value, device)
        side = first_step_kwargs(aligned, context, context_mask, prefix_attn_len)
        side |= prepend_kwargs(prepend_embeds, prepend_mask)
        ending = StoppingCriteria(seq_len, eos_token, self.pad_value)
        length = aligned.ids.shape[1]
        beside = align_token_ids(embed_ids or {}, aligned, length + seq_len)

        def ready(net: Any) -> Amateur:
            window = generation_window(net, length, seq_len, restrict_to_max_seq_len)
            return Amateur(net, window, use_cache(net, cache_kv))

        rivals = amateurs_of(amateur_model, self.net)
        against = ContrastiveDecoding(tuple(map(ready, rivals)), *read_settings(contrastive_decode_kwargs))
        with evaluating(nn.ModuleList([self.net, *rivals])):
            _, window, cached = ready(self.net)
            rival = against if rivals else None
            new = decode(self.net, aligned, ending, sample, window, cached, side, beside, rival)
        return new if aligned.batched else new[0]

    @as_session
    def beam_search(
        self,
        prompts: PromptLike,
        seq_len: int,
        beams: int = 4,
        *,
        eos_token: int | None = None,
        length_penalty: float = 0.0,
        prompt_lens: Tensor | Sequence[int] | None = None,
        restrict_to_max_seq_len: bool = True,
        cache_kv: bool = True,
        return_beams: bool = False,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
    ) -> Any:
        """The most likely continuation of each prompt that `beams` at a time can find: long [B, seq_len].

        Args:
            beams: K, how many unended continuations are followed; with as many as there are it is exhaustive.
            eos_token: a continuation ends with it, the rest is `pad_value`; None: all have `seq_len` tokens.
            length_penalty: continuations are compared by log probability / length ** penalty, the end
                counted; 0 compares probabilities, larger values favour longer ones.
            return_beams: return the K best, best first: tokens [B, K, seq_len] and scores [B, K], minus
                infinity where there are fewer.

        Every other argument, the limits and the errors are those of `generate`.
        """
        check_request(self.net.num_tokens, seq_len, eos_token)
        if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
            raise ValueError(f"`beams` must be a whole number of at least 1, but is {beams!r}")
        if not is_number(length_penalty) or length_penalty < 0:
            raise ValueError(f"`length_penalty` must be a number of at least 0, but is {length_penalty!r}")
        device = home_of(self.net)[0]
        aligned = read_prompts(prompts, prompt_lens, self.net.num_tokens, self.pad_value, device)
        side = first_step_kwargs(aligned, context, context_mask, prefix_attn_len)
        side |= prepend_kwargs(prepend_embeds, prepend_mask)
        length = aligned.ids.shape[1]
        beside = align_token_ids(embed_ids or {}, aligned, length + seq_len)
        window = generation_window(self.net, length, seq_len, restrict_to_max_seq_len)
        ending, cached = StoppingCriteria(seq_len, eos_token, self.pad_value), use_cache(self.net, cache_kv)
        with evaluating(self.net):
            pool = search(self.net, aligned, ending, beams, length_penalty, window, cached, side, beside)
        if return_beams:
            return (pool.tokens, pool.scores) if aligned.batched else (pool.tokens[0], pool.scores[0])
        return pool.tokens[:, 0] if aligned.batched else pool.tokens[0, 0]


def amateurs_of(given: nn.Module | Sequence[nn.Module] | None, expert: Any) -> list[Any]:
    """The models to be contrasted with, out of their wrappers; they must share the expert's vocabulary."""
    models = [] if given is None else [given] if isinstance(given, nn.Module) else list(given)
    nets = [model.net if isinstance(model, AutoregressiveWrapper) else model for model in models]
    for net in nets:
        check_net(net)
        if net.num_tokens != expert.num_tokens:
            raise ValueError(
                f"`amateur_model` must know the same {expert.num_tokens} tokens, but knows {net.num_tokens}"
            )
    return nets

"""Next-token training and generation around a causal language model."""

from collections.abc import Callable, Mapping, Sequence
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
    align_condition,
    align_token_ids,
    bind_filter,
    decode,
    evaluating,
    is_number,
    read_prompts,
    read_settings,
    search,
)
from flagformer.inputs.requests import (
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
from flagformer.inputs.tokens import prefix_lengths
from flagformer.inputs.z_loss import adds_z_loss
from flagformer.ops.cross_entropy import chunked_cross_entropy, cross_entropy
from flagformer.ops.drop import forgetful_causal_mask
from flagformer.ops.home import home_of
from flagformer.ops.sharded import as_session, is_gathered_inside
from flagformer.stack.inputs import check_size, check_tensor
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Unsaved


class AutoregressiveWrapper(Unsaved, Whole):
    """The loss of next tokens, and generation, for a causal `TransformerWrapper`.

    Args:
        net: a causal model, or one of a PrefixDecoder; others are refused with ValueError.
        ignore_index: targets with this value are ignored; `x` may hold it as padding.
        pad_value: id that replaces `ignore_index` in inputs and fills rows after their end.
        mask_prob: share of earlier tokens that are masked in training, drawn for each row and forward
            (forgetful causal masking, arXiv:2210.13432); the first token of a sequence is never masked.
        add_attn_z_loss: whether the training loss includes the z-loss of attention, with the net's
            `attn_z_loss_weight`, or 1e-4; None: if the net was built with a weight. In eval mode the loss
            is the cross entropy.
        loss_chunks: number of chunks of the tokens for which logits and their gradients are computed, one
            after the other; [B, T, V] is never in memory.
    """

    net: Any  # a TransformerWrapper, or a module with its interface
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
        condition: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Outputs]:
        """Mean cross entropy, in nats, of x[:, 1:] given the tokens before; see also `add_attn_z_loss`.

        In training the auxiliary losses of the net are added (of routing attention, of mixtures of experts).

        Args:
            x: ids [B, T], T at least 2; the model reads the first T - 1.
            return_outputs: return (loss, Outputs), with the embeddings of the T - 1 tokens read and, without
                `loss_chunks`, their logits.
            mask: bool [B, T], True for tokens; a target counts if it and the token before are valid.
            seq_lens: lengths of the sequences packed in each row; the first token of each is not a target.
            context: [B, S, D] for models with cross attention.
            context_mask: bool [B, S], True for tokens of the context.
            prefix_attn_len: for a PrefixDecoder, the number of first tokens of each row (or packed sequence)
                that attend to each other and are not targets; one number or [B].
            embed_ids: [B, T] for each name in the model's `embed_num_tokens`, an id for each token.
            prepend_embeds: [B, P, E] before the tokens, as in the model's forward; not targets.
            prepend_mask: bool [B, P], True for valid ones.
            condition: [B, C], or [B, T, C] one for each token of `x`, for models with
                `adaptive_layernorm` or `adaptive_rmsnorm`.

        The loss is NaN where no target counts.
        """
        ids, targets = ids_and_targets(x, self.net, self.ignore_index, self.pad_value, mask)
        kwargs: dict[str, Any] = {}
        positions = torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None:
            kwargs["mask"] = mask[:, :-1]
        if seq_lens is not None:
            kwargs["seq_lens"], counted, positions = packed_targets(seq_lens, ids)
            targets = targets.masked_fill(~counted, self.ignore_index)
        if prefix_attn_len is not None:
            kwargs["prefix_attn_len"] = prefix_attn_len
            after_prefix = positions[:, 1:] >= prefix_lengths(prefix_attn_len, ids)[:, None]
            targets = targets.masked_fill(~after_prefix, self.ignore_index)
        if context is not None:
            kwargs |= {"context": context, "context_mask": context_mask}
        if self.training and self.mask_prob:
            valid = kwargs.get("mask", torch.ones_like(ids[:, :-1], dtype=torch.bool))
            kwargs["attn_mask"] = forgetful_causal_mask(valid, positions[:, :-1], self.mask_prob)
        if embed_ids is not None:
            kwargs["embed_ids"] = {name: value[:, :-1] for name, value in embed_ids.items()}
        if condition is not None:
            check_tensor("condition", condition)
            kwargs["condition"] = condition[:, :-1] if condition.dim() == 3 else condition
        kwargs |= prepend_kwargs(prepend_embeds, prepend_mask)
        num_prepended = 0 if prepend_embeds is None else prepend_embeds.shape[1]
        if "attn_mask" in kwargs:
            kwargs["attn_mask"] = F.pad(kwargs["attn_mask"], (num_prepended, 0, num_prepended, 0), value=True)
        outputs = self._read(ids[:, :-1], kwargs, num_prepended)
        loss = self._cross_entropy(outputs, targets)
        if outputs.extra_loss is not None:
            loss = loss + outputs.extra_loss
        return (loss, outputs) if return_outputs else loss

    def _read(self, ids: Tensor, kwargs: Mapping[str, Any], num_prepended: int) -> Outputs:
        """The net's outputs for ids [B, T] without those of prepended embeddings, with auxiliary losses in
        training; without logits if these are computed in chunks."""
        whole = self.loss_chunks == 1
        losses = getattr(self.net, "has_losses", False)
        if self.training and (losses or self.adds_z_loss):
            options = {"return_losses": losses, "return_attn_z_loss": self.adds_z_loss}
            _, outputs = self.net(ids, return_embeddings=not whole, **options, **kwargs)
        elif whole:
            logits, embeddings = self.net(ids, return_logits_and_embeddings=True, **kwargs)
            outputs = Outputs(embeddings, logits)
        else:
            outputs = Outputs(self.net(ids, return_embeddings=True, **kwargs))
        logits = None if outputs.logits is None else outputs.logits[:, num_prepended:]
        return replace(outputs, logits=logits, embeddings=outputs.embeddings[:, num_prepended:])

    def _cross_entropy(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Mean over `targets` [B, T], in fp32 or better."""
        if outputs.logits is not None:
            return cross_entropy(outputs.logits, targets, self.ignore_index)
        head = getattr(self.net, "head", None)
        recompute = isinstance(head, nn.Module) and is_gathered_inside(head)
        return chunked_cross_entropy(
            self.net.to_logits, outputs.embeddings, targets, self.ignore_index, self.loss_chunks, recompute
        )

    def update_kmeans(self) -> None:
        """Update the centroids of routing attention; call it after each optimizer step, on all ranks."""
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
        condition: Tensor | None = None,
        stop: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """New tokens after each prompt: long [B, seq_len], or [seq_len] for one prompt without batch.

        Args:
            prompts: ids [B, T] or [T], a list of 1-d tensors or lists of ints of any lengths, or one list of
                ints; the result of a row does not depend on the others.
            seq_len: number of new tokens, at least 1.
            eos_token: a row ends with it, the rest is `pad_value`; prompts are not searched for it.
            temperature: divides the filtered logits; 0 takes the most likely token and ignores the filter.
            prompt_lens: [B] tokens per row of right-padded `prompts`.
            filter_logits_fn: "top_k" (by default a tenth of the vocabulary), "top_p", "min_p", "top_a", a
                function from logits [B, V] to logits [B, V], or None to draw from all tokens.
            filter_kwargs: its settings, such as {"k": 20}, {"thres": 0.9} or {"min_p": 0.1}.
            restrict_to_max_seq_len: every token attends to at most the last `max_seq_len` tokens; False: all.
            cache_kv: read each token once; False reads the whole row at every step and gives the same tokens.
            seed: seeds a separate generator, so that draws repeat; None uses torch's global generator.
            context: [B, S, D] for models with cross attention.
            context_mask: bool [B, S], True for tokens of the context.
            prefix_attn_len: for a PrefixDecoder, the number of first tokens of each prompt that attend to
                each other, at most the prompt's length; one number or [B].
            embed_ids: [B, L] for each name in the model's `embed_num_tokens`: the ids of the first, second,
                ... token of each row, prompt and new ones; L is at least the longest prompt, and tokens
                beyond L get the last id.
            amateur_model: one weaker model or several, with the same vocabulary and inputs, for contrastive
                decoding (arXiv:2309.09117).
            contrastive_decode_kwargs: {"beta": 0.5, "alpha": 0.1}: logits become (1 + beta) * expert - beta *
                amateur, among tokens with at least alpha times the highest probability.
            prepend_embeds: [B, P, E] before each prompt, as in the model's forward; tokens attend to them
                beyond `max_seq_len` too.
            prepend_mask: bool [B, P], True for valid ones.
            condition: [B, C], or [B, L, C] with one for the first, second, ... token of each row, as
                `embed_ids`.
            stop: called after each step with the new tokens [B, n], returns bool [B]: where True, a row ends
                with its last token, the rest is `pad_value`.

        Beyond `max_seq_len`, cached or not: a model with absolute positions refuses the call if prompt and
        new tokens (without the last, which is not read) exceed it; `restrict_to_max_seq_len` applies to the
        others. Raises ValueError for invalid arguments. Every module keeps its training mode.
        """
        check_request(self.net.num_tokens, seq_len, eos_token)
        device = home_of(self.net)[0]
        sample = Sampler(temperature, bind_filter(filter_logits_fn, filter_kwargs), seed, device)
        aligned = read_prompts(prompts, prompt_lens, self.net.num_tokens, self.pad_value, device)
        kwargs = first_step_kwargs(aligned, context, context_mask, prefix_attn_len)
        kwargs |= prepend_kwargs(prepend_embeds, prepend_mask)
        stopping = StoppingCriteria(seq_len, eos_token, self.pad_value, stop)
        length = aligned.ids.shape[1]
        aligned_ids = align_token_ids(embed_ids or {}, aligned, length + seq_len)
        conditions = align_condition(condition, aligned, length + seq_len)

        def as_amateur(net: Any) -> Amateur:
            window = generation_window(net, length, seq_len, restrict_to_max_seq_len)
            return Amateur(net, window, use_cache(net, cache_kv))

        nets = amateurs_of(amateur_model, self.net)
        settings = read_settings(contrastive_decode_kwargs)
        amateurs = ContrastiveDecoding(tuple(map(as_amateur, nets)), *settings)
        with evaluating(nn.ModuleList([self.net, *nets])):
            _, window, cached = as_amateur(self.net)
            contrastive = amateurs if nets else None
            more = (window, cached, kwargs, aligned_ids, contrastive, conditions)
            new = decode(self.net, aligned, stopping, sample, *more)
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
        condition: Tensor | None = None,
    ) -> Any:
        """The most likely continuation of each prompt by beam search: long [B, seq_len].

        Args:
            beams: number K of unfinished continuations per prompt.
            eos_token: a continuation ends with it, the rest is `pad_value`; None: all have `seq_len` tokens.
            length_penalty: continuations are compared by log probability / length ** penalty, with
                `eos_token` counted; 0 compares probabilities, larger values favour longer ones.
            return_beams: return the K best, best first: tokens [B, K, seq_len] and scores [B, K], minus
                infinity if there are fewer than K.

        Every other argument, the limits and the errors are those of `generate`.
        """
        check_request(self.net.num_tokens, seq_len, eos_token)
        if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
            raise ValueError(f"`beams` must be a whole number of at least 1, but is {beams!r}")
        if not is_number(length_penalty) or length_penalty < 0:
            raise ValueError(f"`length_penalty` must be a number of at least 0, but is {length_penalty!r}")
        device = home_of(self.net)[0]
        aligned = read_prompts(prompts, prompt_lens, self.net.num_tokens, self.pad_value, device)
        kwargs = first_step_kwargs(aligned, context, context_mask, prefix_attn_len)
        kwargs |= prepend_kwargs(prepend_embeds, prepend_mask)
        length = aligned.ids.shape[1]
        aligned_ids = align_token_ids(embed_ids or {}, aligned, length + seq_len)
        conditions = align_condition(condition, aligned, length + seq_len)
        window = generation_window(self.net, length, seq_len, restrict_to_max_seq_len)
        stopping, cached = StoppingCriteria(seq_len, eos_token, self.pad_value), use_cache(self.net, cache_kv)
        with evaluating(self.net):
            more = (length_penalty, window, cached, kwargs, aligned_ids, conditions)
            best = search(self.net, aligned, stopping, beams, *more)
        if return_beams:
            return (best.tokens, best.scores) if aligned.batched else (best.tokens[0], best.scores[0])
        return best.tokens[:, 0] if aligned.batched else best.tokens[0, 0]


def amateurs_of(given: nn.Module | Sequence[nn.Module] | None, expert: Any) -> list[Any]:
    """The amateur models without their wrappers; they must share the expert's vocabulary."""
    models = [] if given is None else [given] if isinstance(given, nn.Module) else list(given)
    nets = [model.net if isinstance(model, AutoregressiveWrapper) else model for model in models]
    for net in nets:
        check_net(net)
        if net.num_tokens != expert.num_tokens:
            raise ValueError(
                f"`amateur_model` must have the expert's {expert.num_tokens} tokens, but has {net.num_tokens}"
            )
    return nets

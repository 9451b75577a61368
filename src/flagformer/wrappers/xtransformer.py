"""XTransformer, an encoder-decoder for sequence-to-sequence models (arXiv:1706.03762)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.flags import MODEL_SCOPES, Finding, Flag, FlagError
from flagformer.flags.argument_names import named
from flagformer.flags.groups import FlagGroup, own_flag_errors, own_flags
from flagformer.flow import Outputs
from flagformer.flow.mask_rules import MaskMod
from flagformer.generation import LogitsFilter, PromptLike, evaluating
from flagformer.ops.sharded import as_forward, as_session
from flagformer.sessions.saved_state import InnerStates
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Saved
from flagformer.wrappers import source as sources
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.encoder_decoder import DEC, ENC, FIXED_BY_MODEL, build_halves, conditions_of
from flagformer.wrappers.transformer import TransformerWrapper

# names of the halves' arguments here
SOURCE = {"x": "src", "prepend_embeds": "src_prepend_embeds", "prepend_mask": "src_prepend_mask"}
TARGET = {"prompts": "seq_out_start", "embed_ids": "tgt_embed_ids", "context_mask": "mask"}


class XTransformer(InnerStates, Whole, Saved):
    """An encoder-decoder: `model(src, tgt)` returns a loss, `model.generate` a target.

    Args:
        dim: width D of both halves.
        tie_token_emb: both halves share one token embedding; their vocabularies must be equal.
        ignore_index: targets with this value are ignored.
        pad_value: id that replaces `ignore_index` in inputs and fills rows after their end.
        cross_attn_tokens_dropout: share of the source's tokens that are masked from the decoder in training,
            drawn at each forward; at least one token of each row is kept.
        loss_chunks: number of chunks of the target's tokens for which logits are computed, one after the
            other; [B, T, V] is never in memory.
        src_dim: width C of a source of vectors [B, S, C], such as the frames of a spectrogram, in place of
            token ids; `enc_num_tokens` is then left out.
        src_conv: two convolutions embed these vectors and halve their number; a mask is of the vectors.
        **flags: every flag of `docs/flags.md`, with `enc_` for the encoder or `dec_` for the decoder;
            `enc_num_tokens`, `enc_max_seq_len`, `enc_depth` and the same of `dec_` are required.

    Raises:
        FlagError: lists every mistake in both halves, with the names as typed.
    """

    parts = (
        FlagGroup(ENC, MODEL_SCOPES, frozenset(FIXED_BY_MODEL[ENC])),
        FlagGroup(DEC, MODEL_SCOPES, frozenset(FIXED_BY_MODEL[DEC])),
    )

    def __init__(
        self,
        *,
        dim: Annotated[int, Flag("dim", "width D of both halves", ge=1)],
        tie_token_emb: Annotated[
            bool, Flag("tie_token_emb", "both halves share one token embedding")
        ] = False,
        ignore_index: Annotated[int, Flag("ignore_index", "targets with this value are ignored")] = -100,
        pad_value: Annotated[
            int, Flag("pad_value", "id in place of `ignore_index` in inputs, and after the end of rows", ge=0)
        ] = 0,
        cross_attn_tokens_dropout: Annotated[
            float,
            Flag(
                "cross_attn_tokens_dropout",
                "share of the source's tokens masked from the decoder in training",
                ge=0,
                lt=1,
            ),
        ] = 0.0,
        loss_chunks: Annotated[
            int, Flag("loss_chunks", "number of chunks of the tokens for which logits are computed", ge=1)
        ] = 1,
        src_dim: Annotated[
            int | None, Flag("src_dim", "width of a source of vectors; None: it is token ids", ge=1)
        ] = None,
        src_conv: Annotated[
            bool, Flag("src_conv", "two convolutions halve a source of vectors (Whisper, 2212.04356)")
        ] = False,
        **flags: Any,
    ) -> None:
        super().__init__()
        own = own_flags(XTransformer, locals())
        findings = own_flag_errors(XTransformer, own) + sources.source_errors(src_dim, src_conv)
        of_vectors = (partial(sources.vector_encoder, src_dim=src_dim, src_conv=src_conv),) if src_dim else ()
        halves = build_halves(flags, own, findings, *of_vectors)
        self.encoder: Any = halves[0]
        self.decoder = AutoregressiveWrapper(halves[1], ignore_index, pad_value, loss_chunks=loss_chunks)
        self.own = own
        if tie_token_emb:
            # the decoder's embedding, which is initialised last, as in `reset_parameters`
            self.encoder.share_token_emb(self.decoder.net)

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> XTransformer:
        """The model that `flagformer.build` returns for `model: xtransformer`."""
        if "dim" not in flags:
            raise FlagError([Finding("dim", "`dim` is required: width D of both halves")])
        return XTransformer(**{name: value for name, value in flags.items() if name != "model"})

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags from which `flagformer.build` builds this model."""
        own: dict[str, Any] = {"model": "xtransformer", **self.own}
        halves = ((ENC, sources.encoder_flags(self.encoder)), (DEC, self.decoder.net.flags))
        for prefix, flags in halves:
            decided = {"model", *FIXED_BY_MODEL[prefix]}
            own |= {prefix + name: value for name, value in flags.items() if name not in decided}
        return own

    def num_params(self, *, embedding: bool = True) -> int:
        """Number of parameters, tied ones once; without token and position embeddings under
        `embedding=False`."""
        outside = {
            id(parameter)
            for half in (getattr(self.encoder, "net", self.encoder), self.decoder.net)
            for module in (half.token_emb, half.pos_emb, half.embedding.kinds)
            for parameter in module.parameters()
        }
        return sum(p.numel() for p in self.parameters() if embedding or id(p) not in outside)

    def explain(self) -> str:
        """Describe both halves and the reason for each kernel."""
        tied = ", one token embedding" if self.own["tie_token_emb"] else ""
        title = f"XTransformer: {self.num_params():,} parameters{tied}"
        return "\n".join([title, "encoder:", self.encoder.explain(), "decoder:", self.decoder.net.explain()])

    @as_forward
    def encode(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        attn_mask: Tensor | MaskMod | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        src_prepend_embeds: Tensor | None = None,
        src_prepend_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Source ids [B, S] -> the decoder's context [B, S, D]; [B, P + S, D] with prepended embeddings."""
        prepended = (src_prepend_embeds, src_prepend_mask)
        return self._embeddings(src, mask, attn_mask, embed_ids, *prepended, condition)

    def _embeddings(
        self,
        src: Tensor,
        mask: Any,
        attn_mask: Any,
        embed_ids: Any,
        prepended: Any,
        prepend_mask: Any,
        condition: Tensor | None,
    ) -> Tensor:
        kwargs = {"prepend_embeds": prepended, "prepend_mask": prepend_mask, "embed_ids": embed_ids}
        kwargs["condition"] = self._conditions(condition)[0]
        with named(SOURCE):
            kwargs = sources.encoder_arguments(self.encoder, kwargs)
            out: Tensor = self.encoder(src, mask=mask, attn_mask=attn_mask, return_embeddings=True, **kwargs)
        return out

    def _encode(self, src: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """The context of the decoder, and the auxiliary losses of the encoder in training."""
        kwargs = sources.encoder_arguments(self.encoder, kwargs)
        if not (self.training and self.encoder.has_losses):
            return self.encoder(src, return_embeddings=True, **kwargs), {}
        out, outputs = self.encoder(src, return_embeddings=True, return_losses=True, **kwargs)
        return out, outputs.losses

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        mask: Tensor | None = None,
        attn_mask: Tensor | MaskMod | None = None,
        *,
        tgt_mask: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        tgt_embed_ids: Mapping[str, Tensor] | None = None,
        src_prepend_embeds: Tensor | None = None,
        src_prepend_mask: Tensor | None = None,
        condition: Tensor | None = None,
        return_outputs: bool = False,
    ) -> Any:
        """Mean cross entropy, in nats, of tgt[:, 1:] given the source and the tokens before.

        In training the auxiliary losses of both halves are added.

        Args:
            src: ids [B, S]; vectors [B, S, `src_dim`] where that is set.
            tgt: ids [B, T], T at least 2; `ignore_index` where there is no target.
            mask: bool [B, S], True for tokens of the source.
            attn_mask: bool [S, S], [H, S, S], [B, S, S] or [B, H, S, S], True where the encoder's attention
                is allowed; or a function `(b, h, q_idx, kv_idx) -> bool`.
            tgt_mask: bool [B, T], True for tokens of the target.
            embed_ids: [B, S] for each name in `enc_embed_num_tokens`.
            tgt_embed_ids: [B, T] for each name in `dec_embed_num_tokens`.
            src_prepend_embeds: [B, P, E] before the source, also in `attn_mask`; E is `enc_emb_dim`, or D.
            src_prepend_mask: bool [B, P], True for valid ones.
            condition: [B, C], for the halves that read one (`adaptive_layernorm`).
            return_outputs: return (loss, Outputs) of the decoder, with the losses of both halves.

        Raises:
            ValueError: names the argument, its value and the values allowed.
        """
        prepended = {"prepend_embeds": src_prepend_embeds, "prepend_mask": src_prepend_mask}
        kwargs = {"mask": mask, "attn_mask": attn_mask, "embed_ids": embed_ids, **prepended}
        kwargs["condition"], of_target = self._conditions(condition)
        with named(SOURCE):
            encoded, losses = self._encode(src, kwargs)
        valid = sources.context_mask_of(src, mask, src_prepend_embeds, src_prepend_mask, self.own["src_conv"])
        kwargs = {"context": encoded, "context_mask": valid, "embed_ids": tgt_embed_ids}
        kwargs["condition"] = of_target
        with named({"x": "tgt", "mask": "tgt_mask", "embed_ids": "tgt_embed_ids", "context_mask": "mask"}):
            loss, outputs = self.decoder(tgt, return_outputs=True, mask=tgt_mask, **kwargs)
        extra = Outputs(encoded, losses=losses).extra_loss
        loss = loss if extra is None else loss + extra
        if not return_outputs:
            return loss
        names = dict.fromkeys((*losses, *outputs.losses))
        both = {name: [*losses.get(name, ()), *outputs.losses.get(name, ())] for name in names}
        return loss, replace(outputs, losses=both)

    @property
    def _of_states(self) -> TransformerWrapper:
        return self.decoder.net

    def update_kmeans(self) -> None:
        """Update the centroids of routing attention; call it after each optimizer step, on all ranks."""
        update_kmeans(self)

    @as_session
    def generate(
        self,
        seq_in: Tensor,
        seq_out_start: PromptLike,
        seq_len: int,
        mask: Tensor | None = None,
        attn_mask: Tensor | MaskMod | None = None,
        *,
        eos_token: int | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | Sequence[int] | None = None,
        filter_logits_fn: str | LogitsFilter | None = "top_k",
        filter_kwargs: Mapping[str, Any] | None = None,
        restrict_to_max_seq_len: bool = True,
        cache_kv: bool = True,
        seed: int | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        tgt_embed_ids: Mapping[str, Tensor] | None = None,
        src_prepend_embeds: Tensor | None = None,
        src_prepend_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """New target tokens after each start: long [B, seq_len], or [seq_len] for one start without batch.

        The source is encoded once; its keys and values are projected once in each layer.

        Args:
            seq_in: source ids [B, S].
            seq_out_start: the beginning of each target: ids [B, T] or [T], or lists of any lengths.
            seq_len: number of new tokens.
            mask: bool [B, S], True for tokens of the source.
            attn_mask, embed_ids, src_prepend_embeds, src_prepend_mask, condition: as in the forward.
            tgt_embed_ids: the `embed_ids` of `AutoregressiveWrapper.generate`.

        Every other argument is that of `AutoregressiveWrapper.generate`.
        """
        front = (src_prepend_embeds, src_prepend_mask)
        context = self._read_source(seq_in, mask, attn_mask, embed_ids, *front, condition)
        with named(TARGET):
            return self.decoder.generate(
                seq_out_start,
                seq_len,
                eos_token=eos_token,
                temperature=temperature,
                prompt_lens=prompt_lens,
                filter_logits_fn=filter_logits_fn,
                filter_kwargs=filter_kwargs,
                restrict_to_max_seq_len=restrict_to_max_seq_len,
                cache_kv=cache_kv,
                seed=seed,
                context=context,
                context_mask=sources.context_mask_of(seq_in, mask, *front, self.own["src_conv"]),
                embed_ids=tgt_embed_ids,
                condition=self._conditions(condition)[1],
            )

    @as_session
    def beam_search(
        self,
        seq_in: Tensor,
        seq_out_start: PromptLike,
        seq_len: int,
        beams: int = 4,
        mask: Tensor | None = None,
        attn_mask: Tensor | MaskMod | None = None,
        *,
        eos_token: int | None = None,
        length_penalty: float = 0.0,
        prompt_lens: Tensor | Sequence[int] | None = None,
        restrict_to_max_seq_len: bool = True,
        cache_kv: bool = True,
        return_beams: bool = False,
        embed_ids: Mapping[str, Tensor] | None = None,
        tgt_embed_ids: Mapping[str, Tensor] | None = None,
        src_prepend_embeds: Tensor | None = None,
        src_prepend_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Any:
        """The most likely target after each start by beam search: long [B, seq_len].

        Source arguments are those of `generate`, the others those of `AutoregressiveWrapper.beam_search`.
        """
        front = (src_prepend_embeds, src_prepend_mask)
        context = self._read_source(seq_in, mask, attn_mask, embed_ids, *front, condition)
        with named(TARGET):
            return self.decoder.beam_search(
                seq_out_start,
                seq_len,
                beams,
                eos_token=eos_token,
                length_penalty=length_penalty,
                prompt_lens=prompt_lens,
                restrict_to_max_seq_len=restrict_to_max_seq_len,
                cache_kv=cache_kv,
                return_beams=return_beams,
                context=context,
                context_mask=sources.context_mask_of(seq_in, mask, *front, self.own["src_conv"]),
                embed_ids=tgt_embed_ids,
                condition=self._conditions(condition)[1],
            )

    def _conditions(self, condition: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return conditions_of(condition, self.encoder, self.decoder.net)

    def _read_source(self, src: Tensor, mask: Tensor | None, *more: Any) -> Tensor:
        """`encode` without gradient, in eval mode."""
        with torch.no_grad(), evaluating(self.encoder), named({"src": "seq_in"}):
            return self._embeddings(src, mask, *more)

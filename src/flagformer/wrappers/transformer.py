"""TransformerWrapper: token ids in, logits out, around any AttentionLayers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from flagformer.embedding import options as emb
from flagformer.embedding.norms import build_embedding_norm
from flagformer.embedding.scales import NoTokenScale
from flagformer.embedding.stage import EmbeddingStage
from flagformer.embedding.tokens import TokenEmbedding, vectors_of
from flagformer.flags import CATALOGUE, MODEL_SCOPES, Finding, Flag, FlagError, component, resolve
from flagformer.flags.absolute_positions import with_positions
from flagformer.flags.model_flags import MODEL_SLOTS, given_flags
from flagformer.flow import DecodeState, InterleavedDecodeState
from flagformer.flow.mask_rules import MaskMod
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.head.heads import EMB_DIM
from flagformer.head.layer_mix import NoLayerMix
from flagformer.inputs.interleaving import refuse_unread
from flagformer.inputs.read import CallArguments
from flagformer.inputs.return_options import ReturnOptions
from flagformer.inputs.segments import next_memory, refuse_slots
from flagformer.inputs.z_loss import ZLossWeight, refuse_no_attention, requested_losses
from flagformer.norm.layernorm import DEFAULT_EPS
from flagformer.ops.identity import identity
from flagformer.ops.l2_normalize import l2_normalize
from flagformer.ops.sharded import as_forward
from flagformer.position.absolute import UNIT
from flagformer.stack.layers import AttentionLayers, Decoder, Encoder, PrefixDecoder
from flagformer.stack.refusals import refuse_mixer_memory, refuse_shared, refuse_value_memory
from flagformer.storage.saved import Saved
from flagformer.wrappers.language_model import LanguageModel

# The values of `model` and their layers.
MODELS: dict[str, type[AttentionLayers]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "prefix_decoder": PrefixDecoder,
}


@component("wrapper")
class TransformerWrapper(LanguageModel, Saved):
    """A language model: token embedding, positions, layers, logits.

    Absolute positions are learned if the layers have no relative scheme, and absent if they have one; set
    `use_abs_pos_emb` or `scaled_sinu_pos_emb` to choose.

    Raises:
        FlagError: lists every invalid value.
    """

    first = ("attn_layers", "token_emb")

    def __init__(
        self,
        *,
        num_tokens: Annotated[int, Flag("num_tokens", "size V of the vocabulary", ge=1)],
        max_seq_len: emb.MaxSeqLen,
        attn_layers: AttentionLayers,
        use_abs_pos_emb: bool | None = None,
        scaled_sinu_pos_emb: bool = False,
        sinu_pos_emb_scale: float | None = None,
        sinu_pos_emb_endpoint: bool = False,
        sinu_pos_emb_offset: int = 0,
        tie_embedding: bool = False,
        return_only_embed: bool = False,
        emb_dropout: Annotated[float, Flag("emb_dropout", "dropout of embeddings", ge=0, lt=1)] = 0.0,
        emb_dim: Annotated[int | None, EMB_DIM] = None,
        embedding_scale: bool | float | None = None,
        abs_pos_emb_offset: int = 0,
        num_token_types: emb.TokenTypes = 0,
        post_emb_norm: bool = False,
        post_emb_norm_eps: float = DEFAULT_EPS,
        post_emb_norm_bias: bool = False,
        l2norm_embed: Annotated[bool, UNIT] = False,
        emb_frac_gradient: emb.GradientShare = 1.0,
        embed_num_tokens: emb.EmbedNumTokens = None,
        logits_dim: int | None = None,
        logits_bias: bool = False,
        logits_scale: float = 1.0,
        logits_softcap: float | None = None,
        head_transform: str | None = None,
        head_transform_bias: bool = True,
        head_transform_eps: float = DEFAULT_EPS,
        scalar_mix: bool = False,
        scalar_mix_norm: bool = False,
        tie_embedding_scale: float | None = None,
        attn_z_loss_weight: ZLossWeight = 0.0,
        max_mem_len: int = 0,
        shift_mem_down: int = 0,
        num_memory_tokens: int = 0,
        memory_tokens_interspersed_every: int | None = None,
        num_memory_slots: int = 0,
        memory_update: str = "gru",
        num_mem_updates: int = 1,
        mem_update_attn_heads: int = 8,
        memory_temperature: float | None = None,
        token_scale: Any = None,
        absolute: Any = None,
        embedding_norm: Any = None,
        memory: Any = None,
        layer_mix: Any = None,
        head: Any = None,
        recurrence: Any = None,
        slots: Any = None,
    ) -> None:
        """See the class and `docs/flags.md`; the last arguments take components of your own."""
        given = given_flags(locals())
        super().__init__()
        if not isinstance(attn_layers, AttentionLayers):
            text = f"`attn_layers` must be AttentionLayers (Decoder, ...), but is {type(attn_layers)}"
            raise FlagError([Finding("attn_layers", text)])
        given = with_positions(given, attn_layers.dims.disable_abs_pos_emb, attn_layers.is_relative)
        self.resolved = resolve(given, CATALOGUE, {"model"})
        refuse_no_attention(attn_layers, attn_z_loss_weight)
        kinds = emb.embedding_kinds(embed_num_tokens, num_token_types)
        dim, width = attn_layers.dim, emb_dim or attn_layers.dim
        self.num_tokens, self.max_seq_len = num_tokens, max_seq_len
        self.attn_z_loss_weight = float(attn_z_loss_weight)
        # normalised vectors start small, so that small steps change their direction quickly
        self.add_module("token_emb", TokenEmbedding(num_tokens, width, 1e-5 if l2norm_embed else None))
        self.form = l2_normalize if l2norm_embed else identity
        self.token_scale = emb.step_of(self._one("token_scale").build(width), NoTokenScale)
        self.pos_emb = self._one("absolute").build(width, max_seq_len)
        norm = build_embedding_norm(self._one("embedding_norm"), width)
        self.embedding = EmbeddingStage(width, dim, kinds, norm, emb_frac_gradient, emb_dropout)
        self.memory = self._one("memory").build(dim)
        self.attn_layers = attn_layers
        refuse_unread(self.memory.pattern, attn_layers)
        self.slots = self._one("slots").build(dim)
        refuse_slots(self.slots.count, attn_layers, max_seq_len)
        steps = attn_layers.hidden_steps
        self.layer_mix = self._one("layer_mix").build(dim, len(steps))
        # the steps whose hidden states the stack records for it
        self.mixed_steps = () if type(self.layer_mix) is NoLayerMix else steps
        self.head = self._one("head").build(dim, num_tokens)
        readers = [attn_layers.steps[step].kind for step in attn_layers.recurrent_steps]
        self.recurrence = self._one("recurrence").build(dim, readers)
        if self.recurrence.most:
            for refuse in (refuse_mixer_memory, refuse_value_memory):
                refuse(attn_layers, "max_mem_len" if max_mem_len else "recurrence")
        refuse_shared(self.resolved.stack.items(), self, "slots")

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> TransformerWrapper:
        """The model that `flagformer.build` returns for `model: decoder` (default) and other single stacks.

        Raises:
            FlagError: lists every mistake.
        """
        rest = dict(flags)
        kind = rest.pop("model", "decoder")
        if "causal" in rest:
            text = f"`causal` is fixed by `model: {kind}`; leave it out"
            raise FlagError([Finding("causal", text)])
        try:
            resolve({**rest, "causal": kind == "decoder"}, CATALOGUE, MODEL_SCOPES)
        except FlagError as error:
            raise FlagError(_by_model(finding, kind) for finding in error.findings) from None
        own = (*CATALOGUE.names({"model"}), *MODEL_SLOTS)
        outer = {name: rest.pop(name) for name in own if name in rest}
        return TransformerWrapper(attn_layers=MODELS[kind](**rest), **outer)

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags from which `flagformer.build` builds this model."""
        named = [name for name, cls in MODELS.items() if isinstance(self.attn_layers, cls)]
        kind = named[0] if named else "decoder" if self.attn_layers.causal else "encoder"
        layers = {name: value for name, value in self.attn_layers.flags.items() if name != "causal"}
        return {"model": kind, **self.resolved.flags, **layers}

    @as_forward
    def to_logits(self, embeddings: Tensor) -> Tensor:
        """[B, T, D] of the last layer -> [B, T, V]."""
        return self._logits(embeddings)

    def _logits(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.head(embeddings, self._vectors)
        return logits

    def _vectors(self, device: torch.device) -> Tensor:
        """[V, E], the embedding of each token as the layers read it."""
        return self.form(vectors_of(self.token_emb, self.num_tokens, device))

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        attn_mask: Tensor | MaskMod | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        seq_lens: Any = None,
        pos: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        window: int | None = None,
        state: DecodeState | InterleavedDecodeState | None = None,
        token_type_ids: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        sum_embeds: Tensor | None = None,
        mems: RecurrentState | Tensor | Sequence[Tensor] | None = None,
        mem_masks: Tensor | Sequence[Tensor] | None = None,
        detach_mems: bool | None = None,
        return_mems: bool = False,
        prepend_embeds: Tensor | None = None,
        prepend_mask: Tensor | None = None,
        condition: Tensor | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_intermediates: bool = False,
        return_attn: bool = False,
        attn_z_loss_weight: float | None = None,
        return_attn_z_loss: bool = False,
        return_losses: bool = False,
    ) -> Any:
        """Token ids -> logits.

        Args:
            x: [B, T] integers in [0, V).
            mask: [B, T] bool, True for tokens, False for padding.
            attn_mask: [T, S], [H, T, S], [B, T, S] or [B, H, T, S] bool, True where self-attention is
                allowed; with `mems` S is T, or M + T. Or a function `(b, h, q_idx, kv_idx) -> bool`, as
                FlexAttention's `mask_mod`: indices count from the first token, padding and `prepend_embeds`
                included, also in a decoding session; tokens of `mems` are negative.
            context: [B, S, D_context] for cross-attention; in decoding with the prompt only.
            context_mask: [B, S] bool, True for tokens, False for padding.
            seq_start_pos: [B] the index of each left-padded row's first valid token, which has position 0.
            seq_lens: the lengths of the sequences packed in each row, as a list of lists or [B, N] integers
                filled with zeros. Attention stays within a sequence, each starts at position 0, and tokens
                after the last one are padding.
            pos: [T] or [B, T] integers, your own positions; causality still follows the order of the tokens.
                Refused with memory tokens and prepended embeddings if positions are relative.
            prefix_attn_len: PrefixDecoder only: the number of first valid tokens of each row (or packed
                sequence) to which all its tokens attend, prepended entries not counted; one number or [B].
                In decoding with the first block only, which must hold the prefix.
            window: a token attends to at most this many of the last tokens, itself included; memory tokens
                and prepended embeddings are always allowed and not counted.
            state: a result of `init_state`; x continues its tokens.
            token_type_ids: [B, T] integers below `num_token_types`; None: zeros. `embed_ids` takes them as
                "token_type" too.
            embed_ids: [B, T] integers for each name in `embed_num_tokens`; their embeddings are added.
            sum_embeds: [B, T, E], added to the embeddings; E is `emb_dim`, or D.
            mems: result of `return_mems` of the previous segment, whose tokens and positions x continues. Or
                a list of tensors [B, M, D] of all earlier tokens; or memory slots, also with a new state.
            mem_masks: [B, M] bool or a list of equal ones, True for valid tokens of `mems`.
            detach_mems: True: no gradient flows into `mems`; False: into all; None: into slots, as in the
                papers.
            return_mems: return (the usual result, memories); in Outputs with `return_intermediates`.
            return_attn_z_loss: return (logits, Outputs), whose `attn_z_loss` is the weighted z-loss of this
                forward; can be combined with `return_intermediates`; with `return_embeddings`: (embeddings,
                Outputs).
            return_losses: return (logits, Outputs) with the auxiliary losses of this forward. Only training
                has them, except the z-loss of attention. Combines with others as `return_attn_z_loss`.
            attn_z_loss_weight: replaces the flag; without both a requested loss has weight 1e-4.
            prepend_embeds: [B, P, E], placed before the tokens of each row, without absolute positions and
                after `post_emb_norm`. Results then have length P + T, and so has `attn_mask`; they are part
                of a prefix. In decoding with the first block only.
            prepend_mask: [B, P] bool, True for valid ones; the others are ignored.
            condition: [B, C] for all tokens of a row, memory tokens and prepended embeddings, or [B, T, C]
                for its tokens; C is `adaptive_layernorm`. In decoding that of the new tokens. None: zeros.
            return_embeddings: return the input of the head, the output of the last layer, in place of logits.
            return_logits_and_embeddings: return (logits, embeddings).
            return_intermediates: return (logits, Outputs) with the residual stream before each sublayer and
                attention maps.
            return_attn: return (logits, attention maps), each [B, H, T, prefix + S], one per attention
                sublayer. T of maps and residual streams counts memory tokens and prepended embeddings.

        Returns:
            logits [B, T, V], or the result of the `return_` argument.

        Raises:
            ValueError: names the argument, its value and the values allowed.
        """
        options = ReturnOptions(
            return_embeddings,
            return_logits_and_embeddings,
            return_intermediates,
            return_attn,
            return_attn_z_loss or return_losses,
            return_mems,
        )
        weights = requested_losses(self, attn_z_loss_weight, return_attn_z_loss, options.outputs)
        recurrent_steps = self.attn_layers.recurrent_steps
        collector = options.collector(weights, recurrent_steps, self.mixed_steps)
        given = CallArguments(
            mask=mask, attn_mask=attn_mask, context=context, context_mask=context_mask,
            seq_start_pos=seq_start_pos, seq_lens=seq_lens, pos=pos, prefix_attn_len=prefix_attn_len,
            window=window, state=state, mems=mems, mem_masks=mem_masks, return_mems=return_mems,
            prepend_embeds=prepend_embeds, prepend_mask=prepend_mask, condition=condition,
        )  # fmt: skip
        inputs = given.read(self, x)
        tokens = self.token_scale(self.form(self.token_emb(x)))
        ids = self.embedding.ids_of(x, embed_ids, token_type_ids)
        embedded = (tokens + self.pos_emb(inputs.tokens.positions)).to(tokens.dtype)
        embedded = self.embedding(embedded, ids, sum_embeds, prepend_embeds)
        rows = inputs.rows.merge(self.memory(embedded), embedded)
        out = self.attn_layers(rows, inputs=inputs.stack, collector=collector)
        if self.mixed_steps:
            out = self.layer_mix(out, [collector.hiddens[step] for step in self.mixed_steps])
        out = inputs.rows.unmerge(out)
        inputs.rows.advance(inputs.prefix)
        new = None
        if return_mems:
            hiddens = {step: collector.hiddens[step] for step in recurrent_steps}
            new = next_memory(self, inputs.memory, out, hiddens, inputs.tokens, detach_mems)
        return options.pack(out, self._logits, collector, new)


def _by_model(finding: Finding, kind: str) -> Finding:
    """Replace `causal` in a message by the flag `model`, which the user typed."""
    text = finding.message.replace("`causal=True` (it is False)", f"`model=decoder` (it is `model={kind}`)")
    return replace(finding, message=text)

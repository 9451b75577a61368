"""TransformerWrapper: token ids in, logits out, around any AttentionLayers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.embedding.stage import EmbeddingStage
from flagformer.embedding.tokens import TokenEmbedding
from flagformer.flags import CATALOGUE, Finding, Flag, FlagError, component, resolve
from flagformer.flow import DecodeState, Outputs, Tape
from flagformer.head.heads import EMB_DIM
from flagformer.position.absolute import UNIT
from flagformer.stack.layers import AttentionLayers, Decoder, Encoder, PrefixDecoder
from flagformer.wrappers.inputs import check_ids, check_positions, layout_of, prefix_lengths
from flagformer.wrappers.storage import save_model

MODEL_NAMES = {Encoder: "encoder", Decoder: "decoder", PrefixDecoder: "prefix_decoder"}


@component("wrapper")
class TransformerWrapper(nn.Module):
    """A language model: token embedding, positions, layers, logits.

    Absolute positions: learned ones when the layers know no relative scheme, none when they do; say
    `use_abs_pos_emb` or `scaled_sinu_pos_emb` to decide yourself.

    Raises:
        FlagError: for values that cannot be, all at once.
    """

    def __init__(
        self,
        *,
        num_tokens: Annotated[int, Flag("num_tokens", "size V of the vocabulary", least=1)],
        max_seq_len: Annotated[
            int, Flag("max_seq_len", "positions a learned table holds; others may go beyond", least=0)
        ],
        attn_layers: AttentionLayers,
        use_abs_pos_emb: bool | None = None,
        scaled_sinu_pos_emb: bool = False,
        tie_embedding: bool = False,
        return_only_embed: bool = False,
        emb_dropout: Annotated[float, Flag("emb_dropout", "dropout of embeddings", least=0, below=1)] = 0.0,
        emb_dim: Annotated[int | None, EMB_DIM] = None,
        post_emb_norm: Annotated[bool, Flag("post_emb_norm", "LayerNorm of the embeddings' sum")] = False,
        l2norm_embed: Annotated[bool, UNIT] = False,
        emb_frac_gradient: Annotated[
            float,
            Flag("emb_frac_gradient", "share of the gradient for embeddings (2105.13290)", least=0.001),
        ] = 1.0,
        embed_num_tokens: Annotated[
            dict[str, int] | None,
            Flag("embed_num_tokens", "further embeddings: name -> number of ids (`embed_ids`)", least=1),
        ] = None,
        logits_dim: int | None = None,
    ) -> None:
        """See the class and `docs/flags.md`."""
        super().__init__()
        if not isinstance(attn_layers, AttentionLayers):
            text = (
                f"`attn_layers` must be AttentionLayers (Encoder, Decoder, ...), but is {type(attn_layers)}"
            )
            raise FlagError([Finding("attn_layers", text)])
        given: dict[str, Any] = {
            "num_tokens": num_tokens,
            "max_seq_len": max_seq_len,
            "emb_dropout": emb_dropout,
            "scaled_sinu_pos_emb": scaled_sinu_pos_emb,
            "tie_embedding": tie_embedding,
            "return_only_embed": return_only_embed,
            "emb_dim": emb_dim,
            "post_emb_norm": post_emb_norm,
            "l2norm_embed": l2norm_embed,
            "emb_frac_gradient": emb_frac_gradient,
            "embed_num_tokens": embed_num_tokens,
            "logits_dim": logits_dim,
        }
        if use_abs_pos_emb is not None:
            given["use_abs_pos_emb"] = use_abs_pos_emb
        elif not scaled_sinu_pos_emb:
            given["use_abs_pos_emb"] = not attn_layers.is_relative and max_seq_len > 0
        self.resolved = resolve(given, CATALOGUE, {"model"})
        if emb_frac_gradient > 1:
            text = f"`emb_frac_gradient` must be at most 1, but is {emb_frac_gradient}"
            raise FlagError([Finding("emb_frac_gradient", text)])
        dim, kinds = attn_layers.dim, embed_num_tokens or {}
        if not all(name.isidentifier() for name in kinds):
            text = f"`embed_num_tokens` must hold names as in code, but holds {', '.join(map(repr, kinds))}"
            raise FlagError([Finding("embed_num_tokens", text)])
        width = emb_dim or dim
        self.num_tokens, self.max_seq_len = num_tokens, max_seq_len
        self.token_emb = TokenEmbedding(num_tokens, width, l2norm_embed)
        self.pos_emb = self.resolved.stack["absolute"][0].build(width, max_seq_len)
        self.embedding = EmbeddingStage(width, dim, kinds, post_emb_norm, emb_frac_gradient, emb_dropout)
        self.attn_layers = attn_layers
        self.head = self.resolved.stack["head"][0].build(dim, num_tokens)

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags that `flagformer.build` makes this model of."""
        named = [name for cls, name in MODEL_NAMES.items() if isinstance(self.attn_layers, cls)]
        kind = named[0] if named else "decoder" if self.attn_layers.causal else "encoder"
        layers = {name: value for name, value in self.attn_layers.flags.items() if name != "causal"}
        return {"model": kind, **self.resolved.flags, **layers}

    @property
    def can_cache(self) -> bool:
        return self.attn_layers.can_cache

    @property
    def has_losses(self) -> bool:
        """Whether training forwards make auxiliary losses, which `return_losses` gives."""
        return any(getattr(module, "makes_losses", False) for module in self.attn_layers.modules())

    def update_kmeans(self) -> None:
        """Moves the centroids of routing attention: once for each step of the optimizer, on all ranks."""
        update_kmeans(self)

    @property
    def logits_dim(self) -> int:
        """Logits of a token."""
        return self.resolved.flags["logits_dim"] or self.num_tokens

    @property
    def absolute_positions(self) -> bool:
        """Whether a table of positions ends at `max_seq_len`."""
        return self.pos_emb.limit is not None

    def num_params(self, *, embedding: bool = True) -> int:
        """Number of parameters; without token and position embeddings under `embedding=False`."""
        total = sum(parameter.numel() for parameter in self.parameters())
        tables = (self.token_emb, self.pos_emb, self.embedding.kinds)
        outside = [parameter for table in tables for parameter in table.parameters()]
        return total if embedding else total - sum(parameter.numel() for parameter in outside)

    def explain(self) -> str:
        """What was built, slot by slot, and why each kernel was chosen."""
        slots = [f"  {slot}: {self.resolved.stack[slot][0].describe()}" for slot in ("absolute", "head")]
        title = f"TransformerWrapper: {self.num_params():,} parameters, vocabulary {self.num_tokens}"
        return "\n".join([title, *slots, self.attn_layers.explain()])

    def save(self, directory: str | Path) -> None:
        """Writes `model.safetensors` and `flags.json`; `flagformer.load` reads them back."""
        save_model(self, Path(directory))

    def to_logits(self, embeddings: Tensor) -> Tensor:
        """[B, T, D] of the last layer -> [B, T, V]."""
        return self.head(embeddings, self.token_emb)

    def init_state(
        self, batch: int, length: int, *, window: int | None = None, seq_start_pos: Tensor | None = None
    ) -> DecodeState:
        """A preallocated decoding session for `batch` rows of at most `length` tokens.

        Args:
            window: every query sees at most this many of the last tokens; None: all.
            seq_start_pos: [B] the place of each left-padded row's first real token.
        """
        device = self.token_emb.weight.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.token_emb.weight.dtype
        return self.attn_layers.init_state(
            batch, length, window=window, seq_start_pos=seq_start_pos, device=device, dtype=dtype
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        seq_lens: Any = None,
        pos: Tensor | None = None,
        prefix_attn_len: int | Tensor | None = None,
        window: int | None = None,
        state: DecodeState | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        sum_embeds: Tensor | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_intermediates: bool = False,
        return_attn: bool = False,
        return_losses: bool = False,
    ) -> Any:
        """Token ids -> logits.

        Args:
            x: [B, T] integers in [0, V).
            mask: [B, T] bool, True for real tokens.
            attn_mask: [T, S], [H, T, S], [B, T, S] or [B, H, T, S] bool, True where self-attention may look.
            context: [B, S, D_context] for cross-attention; while decoding only with the prompt.
            context_mask: [B, S] bool, True for real tokens.
            seq_start_pos: [B] the place of each left-padded row's first real token; it has position 0.
            seq_lens: packed rows: the lengths of the sequences that stand one behind the other in each row,
                as a list of lists or [B, N] integers filled with zeros. They never meet, each starts at
                position 0, and what stands behind the last one is padding.
            pos: [T] or [B, T] integers, positions of your own; the order of time stays that of the tokens.
            prefix_attn_len: PrefixDecoder only: so many first real tokens of each row (or packed sequence)
                are seen by all of it; one number or [B]. While decoding only with the first block, which must
                hold the prefix.
            window: a token sees at most this many of the last tokens, itself included.
            state: of `init_state`: x continues what it holds.
            embed_ids: [B, T] integers for each name in `embed_num_tokens`; those vectors are added.
            sum_embeds: [B, T, E], added to the embeddings; E is `emb_dim`, or D.
            return_embeddings: the output of the last layer in place of logits.
            return_logits_and_embeddings: (logits, embeddings).
            return_intermediates: (logits, Outputs) with the stream before each sublayer and attention maps.
            return_attn: (logits, attention maps), each [B, H, T, seats + S], one per attention sublayer.
            return_losses: (logits, Outputs) with the auxiliary losses of this forward, and nothing else kept.

        Returns:
            logits [B, T, V], or what the `return_` argument says.

        Raises:
            ValueError: naming the argument, what it was and what it must be.
        """
        check_ids(x, self.num_tokens)
        forms = (return_embeddings, return_logits_and_embeddings, return_intermediates, return_attn)
        if sum((*forms, return_losses)) > 1:
            raise ValueError(
                "only one `return_` argument can be True, but several are: `return_intermediates` holds all"
            )
        layout = layout_of(x, state, mask=mask, seq_start_pos=seq_start_pos, seq_lens=seq_lens, pos=pos)
        check_positions(layout, self.pos_emb.limit, self.max_seq_len)
        wanted = ["attn.weights"] if return_attn or return_intermediates else []
        tape = Tape([*wanted, "stack.stream"] if return_intermediates else wanted)
        embedded = self.token_emb(x) + self.pos_emb(layout.positions)
        out = self.attn_layers(
            self.embedding(embedded, embed_ids or {}, sum_embeds),
            attn_mask=attn_mask,
            context=context,
            context_mask=context_mask,
            prefix_attn_len=None if prefix_attn_len is None else prefix_lengths(prefix_attn_len, x),
            layout=layout,
            window=window,
            state=state,
            tape=tape,
        )
        if return_embeddings:
            return out
        logits = self.to_logits(out)
        if return_logits_and_embeddings:
            return logits, out
        if return_losses:
            return logits, Outputs(out, logits, tape.losses)
        if not wanted:
            return logits
        maps = tuple(tape.kept.get("attn.weights", ()))
        if return_attn:
            return logits, list(maps)
        return logits, Outputs(out, logits, tape.losses, maps, tuple(tape.kept.get("stack.stream", ())))

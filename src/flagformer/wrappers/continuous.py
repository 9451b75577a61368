"""ContinuousTransformerWrapper: vectors in, vectors out, around any layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from flagformer.embedding.convolutions import ConvStem, ZeroVectors, halved
from flagformer.flags import CATALOGUE, MODEL_SCOPES, Finding, Flag, FlagError
from flagformer.flags.groups import FlagGroup, own_flag_errors, own_flags
from flagformer.flags.needs import without_ids
from flagformer.flow import DecodeState, InterleavedDecodeState
from flagformer.flow.mask_rules import MaskMod
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.ops.identity import identity
from flagformer.ops.sharded import as_forward
from flagformer.sessions.saved_state import StateFiles
from flagformer.stack.inputs import check_padding, check_tensor
from flagformer.wrappers.delegating import Delegating
from flagformer.wrappers.encoder_decoder import HEAD
from flagformer.wrappers.transformer import TransformerWrapper

OF_IDS = "it is a setting of token ids, and inputs are vectors"
# Flags that the model fixes, and the reason.
FIXED = {
    **dict.fromkeys(("num_tokens", "l2norm_embed", "embedding_scale", "token_scale"), OF_IDS),
    **dict.fromkeys(("return_only_embed", *HEAD), "outputs are vectors: use `dim_out`"),
}


class ContinuousTransformerWrapper(StateFiles, Delegating):
    """A model of vectors: x [B, T, C] -> [B, T, `dim_out`], for regression, audio or features.

    Inputs are projected to the width of embeddings, without a bias; the bias is the embedding of the one
    token of `net`, a TransformerWrapper, which adds positions and runs the layers. With `conv_stem` two
    convolutions with biases replace both, and outputs are of every second frame.

    Args:
        **flags: every flag of a decoder or encoder of `docs/flags.md`; `max_seq_len`, `dim` and `depth` are
            required.

    Raises:
        FlagError: lists every mistake.
    """

    parts = (FlagGroup("", MODEL_SCOPES, frozenset({"causal", *FIXED})),)
    inner = "net"

    def __init__(
        self,
        *,
        dim_in: Annotated[
            int | None, Flag("dim_in", "width C of inputs; None: that of embeddings, not projected", ge=1)
        ] = None,
        dim_out: Annotated[
            int | None, Flag("dim_out", "width of outputs; None: `dim`, not projected", ge=1)
        ] = None,
        causal: Annotated[bool, Flag("causal", "causal layers (a Decoder), or an Encoder")] = True,
        conv_stem: Annotated[
            bool,
            Flag("conv_stem", "two convolutions embed inputs and halve their length (Whisper, 2212.04356)"),
        ] = False,
        **flags: Any,
    ) -> None:
        super().__init__()
        self.own = own_flags(ContinuousTransformerWrapper, locals())
        findings = own_flag_errors(ContinuousTransformerWrapper, self.own)
        self.net = _net(flags, causal, findings + _stem_errors(conv_stem, dim_in, causal))
        width = self.net.embedding.width
        self.dim_in = dim_in or width
        if conv_stem:
            self.project_in: Any = ConvStem(self.dim_in, width)
            self.net.add_module("token_emb", ZeroVectors(width, self.project_in.first))
        else:
            self.project_in = identity if dim_in is None else nn.Linear(dim_in, width, bias=False)
            _start_at_zero(self.net.token_emb)
        self.project_out = identity if dim_out is None else nn.Linear(self.attn_layers.dim, dim_out)

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> ContinuousTransformerWrapper:
        """The model that `flagformer.build` returns for `model: continuous`."""
        return ContinuousTransformerWrapper(
            **{name: value for name, value in flags.items() if name != "model"}
        )

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags from which `flagformer.build` builds this model."""
        inner = {name: value for name, value in self.net.flags.items() if name not in {"model", *FIXED}}
        return {"model": "continuous", **self.own, **inner}

    @property
    def num_memory_slots(self) -> int:
        """Number of memory slots of a row."""
        return self.net.num_memory_slots

    @property
    def can_cache(self) -> bool:
        """Whether the layers support a decode state."""
        return self.net.can_cache

    def explain(self) -> str:
        """Describe the components, slot by slot, and the reason for each kernel."""
        out = self.own["dim_out"] or self.attn_layers.dim
        sizes = f"{self.num_params():,} parameters, {self.dim_in} to {out} numbers"
        title = f"ContinuousTransformerWrapper: {sizes}"
        return "\n".join([title, self.net.explain()])

    @as_forward
    def init_state(
        self, batch: int, length: int, *, window: int | None = None, seq_start_pos: Tensor | None = None
    ) -> DecodeState | InterleavedDecodeState:
        """Return a preallocated decode state for `batch` rows of at most `length` vectors, as that of
        `TransformerWrapper`."""
        return self.net.init_state(batch, length, window=window, seq_start_pos=seq_start_pos)

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
        window: int | None = None,
        state: DecodeState | InterleavedDecodeState | None = None,
        token_type_ids: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        mems: RecurrentState | Tensor | Sequence[Tensor] | None = None,
        return_mems: bool = False,
        condition: Tensor | None = None,
        return_embeddings: bool = False,
        return_losses: bool = False,
    ) -> Any:
        """Vectors -> vectors.

        Args:
            x: [B, T, C] floating-point numbers; C is `dim_in`, or the width of embeddings. With `conv_stem`
                `mask` is of these T frames, all other arguments and outputs of ceil(T / 2) tokens.
            return_embeddings: return the output of the last layer [B, T, D] in place of outputs.
            return_losses: return (outputs, Outputs) with the auxiliary losses of this forward.

        Every other argument is that of `TransformerWrapper.forward`.

        Returns:
            outputs [B, T, `dim_out`], or D numbers without `dim_out`; with `return_mems` (outputs, memories).

        Raises:
            ValueError: names the argument, its value and the values allowed.
        """
        _check_numbers(x, self.dim_in)
        _refuse_several(return_losses, return_mems or return_embeddings)
        x, mask = self._embedded(x, mask)
        ids = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        result = self.net(
            ids, sum_embeds=x, mask=mask, attn_mask=attn_mask, context=context,
            context_mask=context_mask, seq_start_pos=seq_start_pos, seq_lens=seq_lens, pos=pos, window=window,
            state=state, token_type_ids=token_type_ids, embed_ids=embed_ids, mems=mems,
            return_mems=return_mems, condition=condition, return_embeddings=True, return_losses=return_losses,
        )  # fmt: skip
        if return_losses:
            out = self.project_out(result[0])
            return out, replace(result[1], logits=out)
        embeddings, *mems_after = result if return_mems else (result,)
        out = embeddings if return_embeddings else self.project_out(embeddings)
        return (out, *mems_after) if return_mems else out

    def _embedded(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embedded inputs, and their mask."""
        if not isinstance(self.project_in, ConvStem):
            return self.project_in(x), mask
        valid = None if mask is None else check_padding("mask", mask, *x.shape[:2])
        return self.project_in(x, valid), halved(valid)


def _net(flags: Mapping[str, Any], causal: Any, findings: list[Finding]) -> TransformerWrapper:
    """Build the model of one token, or raise one FlagError with all mistakes."""
    findings += [
        Finding(name, f"`{name}` cannot be given, because {FIXED[name]}") for name in flags if name in FIXED
    ]
    findings += without_ids(flags, "continuous inputs", CATALOGUE)
    rest = {name: value for name, value in flags.items() if name not in FIXED}
    kind = "decoder" if causal else "encoder"
    net: TransformerWrapper | None = None
    try:
        given = {"model": kind, "num_tokens": 1, "return_only_embed": True, **rest}
        net = TransformerWrapper.from_flags(given)
    except FlagError as error:
        findings += error.findings
    if findings or net is None:
        raise FlagError(dict.fromkeys(findings))
    return net


def _stem_errors(conv_stem: bool, dim_in: int | None, causal: bool) -> list[Finding]:
    """Findings for convolutions of inputs without a width, or in a causal model."""
    if not conv_stem or (dim_in is not None and not causal):
        return []
    text = "`conv_stem` needs `dim_in`, the width of its inputs, and `causal=False`, because convolutions"
    return [Finding("conv_stem", f"{text} read later inputs")]


@torch.no_grad()
def _start_at_zero(embedding: Any) -> None:
    """Set the bias of inputs to zero, here and in `reset_parameters`."""
    embedding.std = 0.0
    embedding.weight.zero_()


def _refuse_several(losses: bool, others: bool) -> None:
    if losses and others:
        raise ValueError(
            "`return_losses` must be False with `return_mems` or `return_embeddings`: leave one out"
        )


def _check_numbers(x: Tensor, width: int) -> None:
    check_tensor("x", x)
    if x.dim() != 3 or x.shape[2] != width or not x.is_floating_point():
        raise ValueError(
            f"`x` must be floating-point numbers of shape [B, T, {width}], "
            f"but is {x.dtype} of shape {list(x.shape)}"
        )
    if not x.shape[0] or not x.shape[1]:
        raise ValueError(f"`x` must hold at least one row of one vector, but has shape {list(x.shape)}")

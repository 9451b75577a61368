"""SequenceClassifier: token ids in, logits of classes or one vector for each row out, around an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from flagformer.flags import MODEL_SCOPES, Finding, Flag, FlagError
from flagformer.flags.groups import FlagGroup, own_flag_errors, own_flags
from flagformer.flow import Outputs
from flagformer.flow.mask_rules import MaskMod
from flagformer.head.pooler import TANH, Pooler, PoolerActivation, pooler_errors
from flagformer.head.pooling import POOLING, pooled
from flagformer.inputs.tokens import check_ids
from flagformer.ops.identity import identity
from flagformer.ops.traced import readable
from flagformer.stack.inputs import check_padding, check_starts
from flagformer.wrappers.delegating import Delegating
from flagformer.wrappers.encoder_decoder import HEAD, MEMORIES
from flagformer.wrappers.transformer import TransformerWrapper

# Flags of the encoder that the model fixes, and the reason.
FIXED = {
    "causal": "an encoder attends to its whole row",
    **dict.fromkeys(("return_only_embed", *HEAD), "logits are of classes: use `num_classes` and `pooler`"),
    **dict.fromkeys(("cross_attend", "only_cross"), "the encoder reads only its row"),
    **dict.fromkeys(MEMORIES, "a row is read whole, not in segments"),
}


class SequenceClassifier(Delegating):
    """An encoder with a classifier (BERT, arXiv:1810.04805): ids [B, T] -> logits [B, num_classes].

    Args:
        **flags: every flag of an encoder of `docs/flags.md`; `num_tokens`, `max_seq_len`, `dim` and `depth`
            are required.

    Raises:
        FlagError: lists every mistake.
    """

    parts = (FlagGroup("", MODEL_SCOPES, frozenset(FIXED)),)
    inner = "encoder"

    def __init__(
        self,
        *,
        num_classes: Annotated[
            int | None, Flag("num_classes", "logits of a row; None: the model returns its vector", ge=1)
        ] = None,
        pooling: Annotated[
            str,
            Flag(
                "pooling",
                "the vector of a row: of its first or last token, the mean over tokens, or of a class token",
                choices=POOLING,
            ),
        ] = "first",
        pooler: Annotated[
            bool, Flag("pooler", "a projection and an activation before the classes (1810.04805)")
        ] = False,
        pooler_activation: PoolerActivation = TANH,
        classifier_dropout: Annotated[
            float, Flag("classifier_dropout", "dropout of the vector of a row", ge=0, lt=1)
        ] = 0.0,
        **flags: Any,
    ) -> None:
        super().__init__()
        self.own = own_flags(SequenceClassifier, locals())
        findings = own_flag_errors(SequenceClassifier, self.own) + pooler_errors(pooler, pooler_activation)
        self.encoder = _encoder(flags, findings)
        dim = self.encoder.attn_layers.dim
        self.class_token = ClassToken(self.encoder.embedding.width) if pooling == "class" else None
        self.pooler = Pooler(dim, pooler_activation) if pooler else identity
        self.dropout = nn.Dropout(classifier_dropout) if classifier_dropout else identity
        self.head = identity if num_classes is None else nn.Linear(dim, num_classes)

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> SequenceClassifier:
        """The model that `flagformer.build` returns for `model: classifier`."""
        return SequenceClassifier(**{name: value for name, value in flags.items() if name != "model"})

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags from which `flagformer.build` builds this model."""
        layers = {name: value for name, value in self.encoder.flags.items() if name not in {"model", *FIXED}}
        return {"model": "classifier", **self.own, **layers}

    @property
    def num_tokens(self) -> int:
        """Size V of the vocabulary."""
        return self.encoder.num_tokens

    def explain(self) -> str:
        """Describe the pooling, the components of the encoder, and the reason for each kernel."""
        classes = self.own["num_classes"]
        given = "one vector for each row" if classes is None else f"{classes} classes"
        title = f"SequenceClassifier: {self.num_params():,} parameters, {given}"
        title += f", {self.own['pooling']} pooling"
        return "\n".join([title, self.encoder.explain()])

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        attn_mask: Tensor | MaskMod | None = None,
        seq_start_pos: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        sum_embeds: Tensor | None = None,
        condition: Tensor | None = None,
        return_logits_and_embeddings: bool = False,
        return_losses: bool = False,
    ) -> Any:
        """Token ids -> logits of classes.

        Args:
            x: [B, T] integers in [0, V).
            mask: [B, T] bool, True for tokens, False for padding; at least one token in each row.
            seq_start_pos: [B] the index of each left-padded row's first token, which has position 0.
            attn_mask: as in `TransformerWrapper.forward`; a class token is at index 0, before the tokens.
            token_type_ids, embed_ids, sum_embeds, condition: as in `TransformerWrapper.forward`.
            return_logits_and_embeddings: return (logits, embeddings) with the encoder's output [B, T, D];
                with a class token [B, 1 + T, D], its output first.
            return_losses: return (logits, Outputs) with the auxiliary losses of this forward.

        Returns:
            logits [B, num_classes], or [B, D] without `num_classes`, or the result of the `return_` argument.

        Raises:
            ValueError: names the argument, its value and the values allowed.
        """
        if return_logits_and_embeddings and return_losses:
            raise ValueError(
                "`return_logits_and_embeddings` must be False with `return_losses`, whose Outputs hold both"
            )
        check_ids(x, self.num_tokens)
        valid = _valid(x, mask, seq_start_pos)
        front = None if self.class_token is None else self.class_token(x.shape[0])
        kwargs = {
            "mask": mask, "attn_mask": attn_mask, "token_type_ids": token_type_ids, "embed_ids": embed_ids,
            "seq_start_pos": seq_start_pos,
            "sum_embeds": sum_embeds, "prepend_embeds": front, "condition": condition,
        }  # fmt: skip
        result = self.encoder(x, return_embeddings=True, return_losses=return_losses, **kwargs)
        out = result[0] if return_losses else result
        vector = pooled(out, valid, self.own["pooling"]) if front is None else out[:, 0]
        logits = self.head(self.dropout(self.pooler(vector)))
        if return_losses:
            return logits, Outputs(out, logits, result[1].losses)
        return (logits, out) if return_logits_and_embeddings else logits


class ClassToken(nn.Module):
    """A learned vector in front of each row: B -> [B, 1, E]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.token, std=self.token.shape[1] ** -0.5)

    def forward(self, batch: int) -> Tensor:
        return self.token.expand(batch, 1, -1)


def _encoder(flags: Mapping[str, Any], findings: list[Finding]) -> TransformerWrapper:
    """Build the encoder, or raise one FlagError with all mistakes."""
    findings += [
        Finding(name, f"`{name}` cannot be given, because {FIXED[name]}") for name in flags if name in FIXED
    ]
    rest = {name: value for name, value in flags.items() if name not in FIXED}
    encoder: TransformerWrapper | None = None
    try:
        encoder = TransformerWrapper.from_flags({"model": "encoder", "return_only_embed": True, **rest})
    except FlagError as error:
        findings += error.findings
    if findings or encoder is None:
        raise FlagError(dict.fromkeys(findings))
    if encoder.attn_layers.has_cross:
        text = "`custom_layers` must hold no 'c', because the encoder reads only its row"
        raise FlagError([Finding("custom_layers", text)])
    return encoder


def _valid(x: Tensor, mask: Tensor | None, starts: Tensor | None) -> Tensor | None:
    """[B, T] bool, True for tokens; None: all are. ValueError for a row without a token."""
    valid = None if mask is None else check_padding("mask", mask, *x.shape)
    if starts is not None:
        first = check_starts("seq_start_pos", starts, x.shape[0])
        after = torch.arange(x.shape[1], device=x.device) >= first[:, None]
        valid = after if valid is None else valid & after
    if valid is not None and readable(valid) and not bool(valid.any(dim=1).all()):
        row = int((~valid.any(dim=1)).nonzero()[0])
        raise ValueError(f"`mask` must hold at least one token in each row, but row {row} has none")
    return valid

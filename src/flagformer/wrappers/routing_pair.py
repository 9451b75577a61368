"""An encoder and a decoder of routing attention, with the names of routing-transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.flags import ErrorCollector, Finding, FlagError, nearest, split_prefixes
from flagformer.flags.argument_names import named
from flagformer.flow import Outputs
from flagformer.generation import LogitsFilter, PromptLike, evaluating
from flagformer.ops.sharded import as_session
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Saved
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.encoder_decoder import conditions_of, loss_findings, shared_modules
from flagformer.wrappers.routing import RoutingNames, build_language_model
from flagformer.wrappers.transformer import TransformerWrapper

ENC, DEC = "enc_", "dec_"
CONTEXT = ("receives_context", "cross_attend")  # two names of one flag
EMBEDDINGS = ("return_embeddings", "return_only_embed")
HEAD = ("head", *EMBEDDINGS)
DECIDED = {
    ENC: {
        "dim": "both halves have one width: use `dim`",
        "causal": "an encoder attends to its whole source",
        **dict.fromkeys(CONTEXT, "the encoder reads only the source"),
        **dict.fromkeys(HEAD, "the decoder reads the encoder's embeddings"),
    },
    DEC: {
        "dim": "both halves have one width: use `dim`",
        "causal": "a decoder does not attend to later tokens",
        **dict.fromkeys(CONTEXT, "a decoder always reads the encoder"),
        **dict.fromkeys(EMBEDDINGS, "the loss is of the decoder's logits"),
    },
}


# names of the halves' arguments here
SOURCE = {"x": "seq_in", "mask": "enc_input_mask"}
TARGET = {"x": "seq_out", "mask": "dec_input_mask", "context_mask": "enc_input_mask"}


class RoutingTransformerEncDec(RoutingNames, Whole, Saved):
    """An encoder-decoder: `model(seq_in, seq_out, return_loss=True)` is (loss, 0).

    One `loss.backward()` trains both halves: the loss includes the auxiliary losses of both.

    Args:
        dim: width D of both halves.
        ignore_index: targets with this value are ignored; None: `pad_value`.
        pad_value: id that fills rows after their end.
        **flags: those of `RoutingTransformerLM` after `enc_` or `dec_`, with `window_size=256`;
            `num_tokens`, `depth` and `max_seq_len` of each half are required.

    Raises:
        FlagError: lists every mistake in both halves, with the names as typed.
    """

    kind = "routing_encdec"

    def __init__(
        self, *, dim: int, ignore_index: int | None = None, pad_value: int = 0, **flags: Any
    ) -> None:
        super().__init__()
        encoder, decoder, rest = split_prefixes(flags, ENC, DEC)
        collector = ErrorCollector()
        collector.findings += [Finding(name, _unknown_flag(name)) for name in rest]
        collector.findings += shared_modules(encoder, decoder)
        for prefix, half in ((ENC, encoder), (DEC, decoder)):
            for name in (name for name in half if name in DECIDED[prefix]):
                text = f"`{prefix}{name}` cannot be given, because {DECIDED[prefix][name]}"
                collector.findings.append(Finding(prefix + name, text))
        shared = {"dim": dim, "window_size": 256}
        first = {**shared, **_without(encoder, DECIDED[ENC]), "return_embeddings": True}
        second = {**shared, **_without(decoder, DECIDED[DEC]), "causal": True, "receives_context": True}
        enc = collector.collect(lambda: build_language_model(first, ENC, {"dim"}))
        dec = collector.collect(lambda: build_language_model(second, DEC, {"dim"}))
        if dec is not None:
            collector.findings += loss_findings(dec, pad_value)
        if not isinstance(ignore_index, int | None) or isinstance(ignore_index, bool):
            text = (
                f"`ignore_index` must be int | None, but is {ignore_index!r} ({type(ignore_index).__name__})"
            )
            collector.findings.append(Finding("ignore_index", text))
        collector.raise_all()
        self.enc = enc
        self.dec = AutoregressiveWrapper(dec, pad_value if ignore_index is None else ignore_index, pad_value)
        self.own = {"dim": dim, "ignore_index": ignore_index, "pad_value": pad_value, **flags}

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> RoutingTransformerEncDec:
        """The model that `flagformer.build` returns for `model: routing_encdec`."""
        if "dim" not in flags:
            raise FlagError([Finding("dim", "`dim` is required: width D of both halves")])
        return RoutingTransformerEncDec(**{name: value for name, value in flags.items() if name != "model"})

    def halves(self) -> tuple[TransformerWrapper, ...]:
        return self.enc, self.dec.net

    def forward(
        self,
        seq_in: Tensor,
        seq_out: Tensor,
        return_loss: bool = False,
        randomly_truncate_sequence: bool = False,
        *,
        enc_input_mask: Tensor | None = None,
        dec_input_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(logits, auxiliary loss), or with `return_loss` (loss, 0), with auxiliary losses included.

        Args:
            seq_in: ids [B, S].
            seq_out: ids [B, T]; with `return_loss` each token is predicted from those before.
            randomly_truncate_sequence: cut `seq_out` to a random length of at least 2, to train short targets
                too; the length comes from torch's generator. Only with `return_loss`.
            enc_input_mask, dec_input_mask: bool [B, S] and [B, T], True for tokens.
            condition: [B, C], for the halves that read one.
        """
        if randomly_truncate_sequence and not return_loss:
            raise ValueError("`randomly_truncate_sequence` needs `return_loss=True`")
        of_source, of_target = conditions_of(condition, self.enc, self.dec.net)
        with named(SOURCE):
            context, outputs = self.enc(seq_in, mask=enc_input_mask, condition=of_source, return_losses=True)
        kwargs = {"context": context, "context_mask": enc_input_mask, "condition": of_target}
        zero = context[:0].sum()
        if not return_loss:
            with named(TARGET):
                logits, decoded = self.dec.net(seq_out, mask=dec_input_mask, return_losses=True, **kwargs)
            both = Outputs(context, losses={**decoded.losses, **_encoder_names(outputs.losses)}).extra_loss
            return logits, zero if both is None else both
        if randomly_truncate_sequence:
            length = int(torch.randint(2, max(seq_out.shape[1], 2) + 1, ()))
            seq_out = seq_out[:, :length]
            dec_input_mask = None if dec_input_mask is None else dec_input_mask[:, :length]
        with named(TARGET):
            loss = self.dec(seq_out, mask=dec_input_mask, **kwargs)
        return loss if outputs.extra_loss is None else loss + outputs.extra_loss, zero

    @as_session
    def generate(
        self,
        seq_in: Tensor,
        seq_out_start: PromptLike,
        max_seq_len: int | None = None,
        *,
        enc_input_mask: Tensor | None = None,
        eos_token: int | None = None,
        temperature: float = 1.0,
        prompt_lens: Tensor | Sequence[int] | None = None,
        filter_logits_fn: str | LogitsFilter | None = "top_k",
        filter_kwargs: Mapping[str, Any] | None = None,
        cache_kv: bool = True,
        seed: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """New target tokens, long [B, max_seq_len]; None: the decoder's `max_seq_len`.

        The source is encoded once. `condition` is [B, C], for the halves that read one. Other arguments are
        those of `AutoregressiveWrapper.generate`.
        """
        with torch.no_grad(), evaluating(self.enc), named(SOURCE):
            of_source, of_target = conditions_of(condition, self.enc, self.dec.net)
            context = self.enc(seq_in, mask=enc_input_mask, condition=of_source)
        with named({"prompts": "seq_out_start", "seq_len": "max_seq_len", "context_mask": "enc_input_mask"}):
            return self.dec.generate(
                seq_out_start,
                self.dec.net.max_seq_len if max_seq_len is None else max_seq_len,
                eos_token=eos_token,
                temperature=temperature,
                prompt_lens=prompt_lens,
                filter_logits_fn=filter_logits_fn,
                filter_kwargs=filter_kwargs,
                cache_kv=cache_kv,
                seed=seed,
                context=context,
                context_mask=enc_input_mask,
                condition=of_target,
            )

    def update_kmeans(self) -> None:
        """Update the centroids; call it after each optimizer step, on all ranks."""
        update_kmeans(self)


def _without(flags: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name not in names}


def _encoder_names(losses: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """The encoder's losses, renamed to differ from the decoder's."""
    return {f"enc.{name}": values for name, values in losses.items()}


def _unknown_flag(name: str) -> str:
    hint = nearest(name, ("dim", "ignore_index", "pad_value")) or "; flags begin with `enc_` or `dec_`"
    return f"`{name}` is not a flag of RoutingTransformerEncDec{hint}"

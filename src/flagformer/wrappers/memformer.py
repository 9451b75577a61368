"""Memformer: an encoder-decoder that reads a source a segment at a time (arXiv:2010.06891)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.flags import MODEL_SCOPES, Finding, Flag, FlagError
from flagformer.flags.argument_names import named
from flagformer.flags.groups import FlagGroup, own_flag_errors, own_flags
from flagformer.flow import Outputs
from flagformer.generation import PromptLike, evaluating
from flagformer.inputs.tokens import check_ids, check_integers
from flagformer.ops.sharded import as_forward, as_session
from flagformer.sessions.source_stream import SourceStream
from flagformer.stack.inputs import check_padding, check_size
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Saved
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.encoder_decoder import DEC, ENC, conditions_of
from flagformer.wrappers.slot_encoder_decoder import DECIDED, build_slot_halves, invert_buckets
from flagformer.wrappers.transformer import TransformerWrapper


class Results(NamedTuple):
    """Result of a segment: enc_out [B, S, D], mem [B, M, D] for the next one, and the loss of its target, or
    its logits with `return_logits`."""

    enc_out: Tensor
    mem: Tensor
    dec_out: Tensor


class EncOnlyResults(NamedTuple):
    """Result of a segment without a decoder."""

    enc_out: Tensor
    mem: Tensor


class Memformer(Whole, Saved):
    """`model(src, tgt, mems=...)` reads one segment of a source and returns the loss of a target, if given.

    Encoder layers are self-attention, cross-attention to M slots, feedforward; the output of the last layer
    updates the slots. The decoder reads the encoder's output. Both halves have T5's relative positions,
    unless a flag selects others.

    Args:
        dim: width D of both halves and of slots.
        num_memory_slots: number of slots M.
        num_mem_updates: number of updates of the slots per segment.
        encoder_only: no decoder, and no `dec_` flag.
        mem_update_attn_heads: heads of the slots' attention to the segment, a divisor of `dim`.
        memory_update: "gru", a recurrent unit and a feedforward, or "bmn", the paper's biased normalisation.
        memory_temperature: of the softmax of "bmn"; None: 0.25.
        compat_positions: "memformer-0.3" uses the buckets of distances of that package, for its weights:
            later tokens share one bucket in the encoder and have half of all in the decoder.
        ignore_index: targets with this value are ignored.
        pad_value: id that replaces `ignore_index` in inputs and fills rows after their end.
        **flags: every flag of `docs/flags.md`, with `enc_` for the encoder or `dec_` for the decoder;
            `enc_num_tokens`, `enc_max_seq_len` (the longest segment), `enc_depth` and the same of `dec_` are
            required.

    Raises:
        FlagError: lists every mistake in both halves, with the names as typed.
    """

    parts = (
        FlagGroup(ENC, MODEL_SCOPES, frozenset(DECIDED[ENC])),
        FlagGroup(DEC, MODEL_SCOPES, frozenset(DECIDED[DEC])),
    )

    def __init__(
        self,
        *,
        dim: Annotated[int, Flag("dim", "width D of both halves and of slots", ge=1)],
        num_memory_slots: Annotated[int, Flag("num_memory_slots", "slots M of a row", ge=1)],
        num_mem_updates: Annotated[
            int, Flag("num_mem_updates", "slot updates per segment", ge=1, lt=1000)
        ] = 1,
        encoder_only: Annotated[bool, Flag("encoder_only", "no decoder")] = False,
        mem_update_attn_heads: Annotated[
            int, Flag("mem_update_attn_heads", "attention heads of slots", ge=1)
        ] = 8,
        memory_update: Annotated[
            str,
            Flag("memory_update", "a recurrent unit, or biased memory normalisation", choices=("gru", "bmn")),
        ] = "gru",
        memory_temperature: Annotated[
            float | None,
            Flag("memory_temperature", "of the softmax of `memory_update=bmn`; None: 0.25", ge=1e-3),
        ] = None,
        compat_positions: Annotated[
            str | None,
            Flag(
                "compat_positions",
                "distance buckets as in another package",
                choices=("memformer-0.3", None),
            ),
        ] = None,
        ignore_index: Annotated[int, Flag("ignore_index", "targets with this value are ignored")] = -100,
        pad_value: Annotated[
            int, Flag("pad_value", "id in place of `ignore_index` in inputs, and after the end of rows", ge=0)
        ] = 0,
        **flags: Any,
    ) -> None:
        super().__init__()
        own = own_flags(Memformer, locals())
        halves = build_slot_halves(flags, own, own_flag_errors(Memformer, own))
        self.encoder: TransformerWrapper = halves[0]
        self.decoder = (
            None if halves[1] is None else AutoregressiveWrapper(halves[1], ignore_index, pad_value)
        )
        self.own = own
        if compat_positions is not None:
            invert_buckets(halves)

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> Memformer:
        """The model that `flagformer.build` returns for `model: memformer`."""
        missing = [name for name in ("dim", "num_memory_slots") if name not in flags]
        if missing:
            raise FlagError([Finding(name, f"`{name}` is required") for name in missing])
        return Memformer(**{name: value for name, value in flags.items() if name != "model"})

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags from which `flagformer.build` builds this model."""
        own: dict[str, Any] = {"model": "memformer", **self.own}
        for prefix, half in self._halves().items():
            decided = {"model", *DECIDED[prefix]}
            own |= {prefix + name: value for name, value in half.flags.items() if name not in decided}
        return own

    @property
    def max_seq_len(self) -> int:
        """Maximum length of a source segment."""
        return self.encoder.max_seq_len

    def _halves(self) -> dict[str, TransformerWrapper]:
        return {ENC: self.encoder} | ({} if self.decoder is None else {DEC: self.decoder.net})

    def num_params(self, *, embedding: bool = True) -> int:
        """Number of parameters; without token and position embeddings under `embedding=False`."""
        return sum(half.num_params(embedding=embedding) for half in self._halves().values())

    def explain(self) -> str:
        """Describe both halves and the reason for each kernel."""
        names = {ENC: "encoder:", DEC: "decoder:"}
        lines = [f"Memformer: {self.num_params():,} parameters"]
        for prefix, half in self._halves().items():
            lines += [names[prefix], half.explain()]
        return "\n".join(lines)

    def stream(
        self, batch_size: int, directory: str | Path | None = None, *, condition: Tensor | None = None
    ) -> SourceStream:
        """Return a stream that reads a source of any length in parts, new or from a saved directory.

        `condition`: [B, C], that of all tokens, for models that read one; it is not saved.
        """
        stream = SourceStream(self, batch_size, condition)
        if directory is not None:
            stream.restore(directory)
        return stream

    @as_forward
    def get_initial_mem(self, batch_size: int) -> Tensor:
        """[B, M, D], the slots before the first segment."""
        check_size("batch_size", batch_size)
        slots = self.encoder.initial_slots(batch_size)
        assert slots is not None
        return slots

    def forward(
        self,
        src: Tensor,
        tgt: Tensor | None = None,
        mems: Tensor | None = None,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        return_outputs: bool = False,
        return_logits: bool = False,
    ) -> Any:
        """Read one segment.

        In training the auxiliary losses of both halves are added to the decoder's.

        Args:
            src: ids [B, S], S at most `enc_max_seq_len`.
            tgt: ids [B, T], T at least 2 and at most `dec_max_seq_len` + 1; `ignore_index` where there is no
                target. The loss is the mean cross entropy, in nats, of tgt[:, 1:].
            mems: [B, M, D] of the previous segment; None: this is the first. Gradients flow through them.
            src_mask: bool [B, S], True for tokens; a row without any keeps its memory.
            tgt_mask: bool [B, T], True for tokens.
            condition: [B, C], for the halves that read one (`adaptive_layernorm`).
            return_outputs: return (the usual result, Outputs) of the encoder, with its auxiliary losses in
                training. A decoder's loss includes them; `encoder_only` has no loss.
            return_logits: return (Results, Outputs), whose `dec_out` is the logits of tgt[:, 1:], [B, T - 1,
                V], in place of their loss; Outputs has the auxiliary losses of both halves in training.

        Returns:
            Results, whose loss without a target is 0 plus the encoder's auxiliary losses; EncOnlyResults with
            `encoder_only`.

        Raises:
            ValueError: names the argument, its value and the values allowed.
        """
        self._check(src, tgt, src_mask, tgt_mask)
        if return_logits and tgt is None:
            raise ValueError("`return_logits` needs a target, but `tgt` is None")
        of_source, of_target = self._conditions(condition)
        outputs, slots = self._encode(src, mems, src_mask, of_source)
        results: Results | EncOnlyResults
        out, extra = outputs.embeddings, outputs.extra_loss
        if self.decoder is None:
            results = EncOnlyResults(out, slots)
        elif return_logits:
            kwargs = {"mask": tgt_mask, "context": out, "context_mask": src_mask}
            _, decoded = self.decoder(tgt, return_outputs=True, condition=of_target, **kwargs)
            losses = {f"dec.{name}": values for name, values in decoded.losses.items()}
            outputs = replace(outputs, losses={**outputs.losses, **losses})
            return Results(out, slots, decoded.logits), outputs
        else:
            loss = out.new_zeros(())
            if tgt is not None:
                kwargs = {"mask": tgt_mask, "context": out, "context_mask": src_mask}
                loss = self.decoder(tgt, condition=of_target, **kwargs)
            results = Results(out, slots, loss if extra is None else loss + extra)
        return (results, outputs) if return_outputs else results

    def _conditions(self, condition: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return conditions_of(condition, self.encoder, None if self.decoder is None else self.decoder.net)

    def _encode(
        self, src: Tensor, mems: Tensor | None, mask: Tensor | None, condition: Tensor | None
    ) -> tuple[Outputs, Tensor]:
        """The encoder's outputs, with its auxiliary losses in training, and the updated slots."""
        kwargs: dict[str, Any] = {"return_embeddings": True, "return_mems": True, "mask": mask, "mems": mems}
        kwargs["condition"] = condition
        if self.training and self.encoder.has_losses:
            _, outputs = self.encoder(src, return_losses=True, **kwargs)
        else:
            out, state = self.encoder(src, **kwargs)
            outputs = Outputs(out, mems=state)
        assert outputs.mems is not None
        assert outputs.mems.slots is not None
        return outputs, outputs.mems.slots

    def update_kmeans(self) -> None:
        """Update the centroids of routing attention; call it after each optimizer step, on all ranks."""
        update_kmeans(self)

    @as_session
    def generate(
        self,
        src: Tensor,
        start_tokens: PromptLike,
        seq_len: int,
        mems: Tensor | None = None,
        src_mask: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """New target tokens after each start: long [B, seq_len], or [seq_len] for one start without batch.

        Args:
            src: ids [B, S], the last segment of the source.
            mems: [B, M, D] of the previous segment; None: it is the first.
            src_mask: bool [B, S], True for tokens.
            condition: [B, C], for the halves that read one.
            **kwargs: every other argument of `AutoregressiveWrapper.generate`.
        """
        if self.decoder is None:
            raise ValueError("`generate` needs a decoder, and this model has none (`encoder_only=True`)")
        if given := {"context", "context_mask"} & set(kwargs):
            raise ValueError(
                f"`{min(given)}` cannot be given: the decoder's context is the encoder's output for `src`"
            )
        self._check(src, None, src_mask, None)
        with torch.no_grad(), evaluating(self.encoder):
            of_source, of_target = self._conditions(condition)
            encoded, _ = self._encode(src, mems, src_mask, of_source)
        kwargs |= {"context": encoded.embeddings, "context_mask": src_mask, "condition": of_target}
        with named({"prompts": "start_tokens", "context_mask": "src_mask"}):
            return self.decoder.generate(start_tokens, seq_len, **kwargs)

    def _check(self, src: Tensor, tgt: Tensor | None, src_mask: Any, tgt_mask: Any) -> None:
        """Check lengths and masks."""
        check_ids(src, self.encoder.num_tokens, "src")
        if src.shape[1] > self.max_seq_len:
            raise ValueError(
                f"`src` must be one segment of at most `enc_max_seq_len` = {self.max_seq_len} tokens, but "
                f"has {src.shape[1]}: read a longer source segment by segment and pass on `mems`"
            )
        if src_mask is not None:
            check_padding("src_mask", src_mask, *src.shape)
        if tgt_mask is not None and tgt is None:
            raise ValueError("`tgt_mask` needs the `tgt` that it masks, but `tgt` is None")
        if tgt is None:
            return
        if self.decoder is None:
            raise ValueError("`tgt` was given, but this model has no decoder (`encoder_only=True`)")
        most = self.decoder.net.max_seq_len
        check_integers("tgt", tgt)
        if tgt.shape[0] != src.shape[0] or not 2 <= tgt.shape[1] <= most + 1:
            raise ValueError(
                f"`tgt` must be ids of shape [{src.shape[0]}, T], T from 2 to {most + 1} "
                f"(`dec_max_seq_len` + 1), but has shape {list(tgt.shape)}"
            )
        read = tgt.masked_fill(tgt == self.decoder.ignore_index, self.decoder.pad_value)
        check_ids(read, self.decoder.net.num_tokens, "tgt")
        if tgt_mask is not None:
            check_padding("tgt_mask", tgt_mask, *tgt.shape)

"""The halves of a Memformer: an encoder with memory slots, and a decoder that reads the encoder's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flagformer.flags import Finding, FlagError, split_prefixes
from flagformer.position.t5 import T5
from flagformer.wrappers import encoder_decoder
from flagformer.wrappers.encoder_decoder import (
    DEC,
    ENC,
    SLOTS_OF_MEMORY,
    TOKENS,
    build_half,
    cross_attention_flags,
    loss_findings,
    shared_modules,
    unknown_flags,
)
from flagformer.wrappers.transformer import TransformerWrapper

# Flags that the model fixes, and the reason.
DECIDED: dict[str, dict[str, str]] = {
    ENC: {
        **{
            name: encoder_decoder.FIXED_BY_MODEL[ENC][name] for name in ("dim", "causal", "return_only_embed")
        },
        **{name: encoder_decoder.FIXED_BY_MODEL[ENC][name] for name in encoder_decoder.HEAD},
        "cross_attend": "an encoder always reads its slots",
        **dict.fromkeys(TOKENS, "the memory of the encoder is in its slots"),
        **{name: f"it has no prefix: use `{name}`" for name in SLOTS_OF_MEMORY},
        "slots": "flags without a prefix set the slots: use `num_memory_slots`",
    },
    DEC: {
        **encoder_decoder.FIXED_BY_MODEL[DEC],
        **{name: f"slots belong to the encoder: use `{name}`" for name in SLOTS_OF_MEMORY},
        "slots": "slots belong to the encoder: use `num_memory_slots`",
    },
}
del DECIDED[DEC]["cross_attn_tokens_dropout"]
# Flags that select the positions of a half; without any of these it has T5's.
POSITIONS = {
    "rotary_pos_emb", "rotary_xpos", "alibi_pos_bias", "rel_pos_bias", "dynamic_pos_bias", "use_abs_pos_emb",
    "scaled_sinu_pos_emb", "disable_abs_pos_emb", "rotation", "position_bias",
}  # fmt: skip


def build_slot_halves(
    flags: Mapping[str, Any], own: Mapping[str, Any], findings: list[Finding]
) -> tuple[TransformerWrapper, TransformerWrapper | None]:
    """Build encoder and decoder, or raise one FlagError with the mistakes in both and unknown flags.

    Args:
        own: flags of the Memformer without a prefix.
        findings: earlier findings, to which those of this function are added.
    """
    encoder, decoder, rest = split_prefixes(flags, ENC, DEC)
    findings += unknown_flags(rest, own, "Memformer") + shared_modules(encoder, decoder)
    dim = own["dim"]
    slots = {name: own[name] for name in SLOTS_OF_MEMORY}
    fixed = {"dim": dim, "return_only_embed": True, **slots, **cross_attention_flags(encoder)}
    first = build_half(ENC, _with_positions(encoder), DECIDED[ENC], fixed, findings)
    second = None
    if own["encoder_only"]:
        findings += _without_decoder(decoder, encoder)
    else:
        fixed = {"dim": dim, **cross_attention_flags(decoder)}
        second = build_half(DEC, _with_positions(decoder), DECIDED[DEC], fixed, findings)
        if second is not None and not second.attn_layers.has_cross:
            text = "`dec_custom_layers` must hold a 'c', because the decoder reads the encoder"
            findings.append(Finding("dec_custom_layers", text))
        if second is not None:
            findings += loss_findings(second, own["pad_value"])
    if own["compat_positions"] is not None:
        findings += _without_buckets({ENC: first, DEC: second})
    if first is None or findings:
        raise FlagError(dict.fromkeys(findings))
    return first, second


def invert_buckets(built: Sequence[TransformerWrapper | None]) -> None:
    """Give later keys buckets in the decoder and one bucket in the encoder, as memformer 0.3 does."""
    for half in built:
        if half is not None:
            bias = half.attn_layers.position_bias
            assert isinstance(bias, T5)
            bias.causal = not bias.causal


def _with_positions(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a half, with T5's positions if it has self-attention and selects no positions."""
    order = flags.get("custom_layers")
    reads = not flags.get("only_cross") and not (isinstance(order, (str, tuple, list)) and "a" not in order)
    return {"rel_pos_bias": True, **flags} if reads and not POSITIONS & set(flags) else dict(flags)


def _without_decoder(decoder: Mapping[str, Any], encoder: Mapping[str, Any]) -> list[Finding]:
    found = [
        Finding(
            DEC + name,
            f"`{DEC}{name}` and `encoder_only=True` cannot be combined, because there is no decoder",
        )
        for name in decoder
    ]
    if encoder.get("attn_z_loss_weight"):
        text = "`enc_attn_z_loss_weight` and `encoder_only=True` cannot be combined, because there is no loss"
        found.append(Finding("enc_attn_z_loss_weight", text))
    return found


def _without_buckets(built: Mapping[str, TransformerWrapper | None]) -> list[Finding]:
    return [
        Finding(
            "compat_positions",
            f"`compat_positions` needs `{prefix}rel_pos_bias=True`, because it changes that bias' buckets",
        )
        for prefix, half in built.items()
        if half is not None and not isinstance(half.attn_layers.position_bias, T5)
    ]

"""The flags of an encoder-decoder, with the prefixes `enc_` and `dec_`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from flagformer.flags import Finding, FlagError, nearest, split_prefixes
from flagformer.flags.groups import names_of_flags
from flagformer.stack.inputs import check_row_condition
from flagformer.wrappers.transformer import TransformerWrapper

ENC, DEC = "enc_", "dec_"
NO_HEAD = "the decoder reads the encoder's embeddings"
HEAD = (
    "head", "tie_embedding", "tie_embedding_scale", "logits_dim", "logits_bias", "logits_scale",
    "logits_softcap", "head_transform", "head_transform_bias", "head_transform_eps",
)  # fmt: skip
Maker = Callable[[Mapping[str, Any]], Any]
# Flags of the decoder's layers without a prefix.
SHARED = ("cross_attn_tokens_dropout",)
TOKENS = ("recurrence", "max_mem_len", "shift_mem_down")
SLOTS_OF_MEMORY = (
    "num_memory_slots", "memory_update", "num_mem_updates", "mem_update_attn_heads", "memory_temperature",
)  # fmt: skip
MEMORIES = (*TOKENS, "slots", *SLOTS_OF_MEMORY)
WIDTH = "both halves have one width: use `dim`"
# Flags that the model fixes, and the reason.
FIXED_BY_MODEL = {
    ENC: {
        "dim": WIDTH,
        "causal": "an encoder attends to its whole source",
        "return_only_embed": NO_HEAD,
        **dict.fromkeys(HEAD, NO_HEAD),
        "cross_attend": "the encoder reads only the source",
        "only_cross": "the encoder reads only the source",
        "cross_attn_tokens_dropout": "the encoder reads only the source",
        **dict.fromkeys(MEMORIES, "the source is read whole, not in segments"),
    },
    DEC: {
        "dim": WIDTH,
        "causal": "a decoder does not attend to later tokens",
        "cross_attend": "a decoder always reads the encoder",
        "cross_attn_dim_context": "the context is the encoder's output, of width `dim`",
        "return_only_embed": "the loss is of the decoder's logits",
        "cross_attn_tokens_dropout": "it has no prefix: use `cross_attn_tokens_dropout`",
        **dict.fromkeys(MEMORIES, "the target is read whole, not in segments"),
    },
}


def build_halves(
    flags: Mapping[str, Any],
    own: Mapping[str, Any],
    findings: list[Finding],
    make_encoder: Maker = TransformerWrapper.from_flags,
) -> tuple[Any, TransformerWrapper]:
    """Build encoder and decoder, or raise one FlagError with the mistakes in both and unknown flags.

    Args:
        own: flags of the encoder-decoder without a prefix.
        findings: earlier findings, to which those of this function are added.
        make_encoder: flags of the encoder -> the encoder.
    """
    encoder, decoder, rest = split_prefixes(flags, ENC, DEC)
    findings += unknown_flags(rest, own, "XTransformer") + shared_modules(encoder, decoder)
    cross = cross_attention_flags(decoder)
    dim = own["dim"]
    shared = {name: own[name] for name in SHARED}
    halves = [
        build_half(
            ENC, encoder, FIXED_BY_MODEL[ENC], {"dim": dim, "return_only_embed": True}, findings, make_encoder
        ),
        build_half(DEC, decoder, FIXED_BY_MODEL[DEC], {"dim": dim, **shared, **cross}, findings),
    ]
    first, second = halves
    if first is not None and second is not None:
        findings += _mismatches(first, second, own["tie_token_emb"]) + loss_findings(second, own["pad_value"])
    if first is None or second is None or findings:
        raise FlagError(dict.fromkeys(findings))
    return first, second


def conditions_of(
    condition: Tensor | None, encoder: TransformerWrapper, decoder: TransformerWrapper | None
) -> tuple[Tensor | None, Tensor | None]:
    """The condition [B, C] of the encoder and of the decoder: that of the call, for halves that read one.

    Raises:
        ValueError: for a condition of another form.
    """
    if condition is None:
        return None, None
    check_row_condition(condition)
    widths = [None if half is None else half.attn_layers.condition_dim for half in (encoder, decoder)]
    # a half that reads none refuses it, if no other half reads one
    of_decoder = decoder is not None and (widths[1] or not widths[0])
    return condition if widths[0] or decoder is None else None, condition if of_decoder else None


def shared_modules(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> list[Finding]:
    """Findings for modules with parameters or buffers that are given to both halves."""
    given = {id(one): name for name, value in encoder.items() for one in _modules_in(value)}
    return [
        Finding(
            DEC + name,
            f"`{DEC}{name}` is the module of `{ENC}{given[id(one)]}`, and both halves would share its "
            "parameters and buffers; pass the class or a Spec, so that each half gets a module of its own",
        )
        for name, value in decoder.items()
        for one in _modules_in(value)
        if id(one) in given
    ]


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """Yield the modules with parameters or buffers in the value of a slot."""
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(one, (list, tuple)):
            yield from _modules_in(one)
        elif isinstance(one, nn.Module) and one.state_dict():
            yield one


def cross_attention_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags for cross-attention in every block, unless a flag sets another order of sublayers."""
    return {} if {"only_cross", "custom_layers"} & set(flags) else {"cross_attend": True}


def build_half(
    prefix: str,
    flags: Mapping[str, Any],
    decided: Mapping[str, str],
    fixed: Mapping[str, Any],
    findings: list[Finding],
    make: Maker = TransformerWrapper.from_flags,
) -> Any:
    """Build one half, or return None with its findings added, with the names as typed.

    Args:
        decided: flags that the model fixes, with the reason; refused in `flags`.
        fixed: their values, and flags without a prefix, which messages name as they are.
        make: flags -> the half.
    """
    findings += [
        Finding(prefix + name, f"`{prefix}{name}` cannot be given, because {decided[name]}")
        for name in flags
        if name in decided
    ]
    rest = {name: value for name, value in flags.items() if name not in decided}
    bare = {"dim"} | ({*SHARED, *SLOTS_OF_MEMORY} & set(fixed))
    try:
        kind = "encoder" if prefix == ENC else "decoder"
        return make({"model": kind, **rest, **fixed})
    except FlagError as error:
        findings += [
            _as_typed(finding, prefix, {*rest, *names_of_flags()} - bare) for finding in error.findings
        ]
        return None


def _as_typed(finding: Finding, prefix: str, names: set[str]) -> Finding:
    """Return the finding of one half with the prefix before every flag it names."""

    def typed(match: re.Match[str]) -> str:
        return f"`{prefix}{match[1]}" if match[1] in names else match[0]

    flag = prefix + finding.flag if finding.flag in names else finding.flag
    return Finding(flag, re.sub(r"`(\w+)", typed, finding.message))


def unknown_flags(names: Iterable[str], own: Iterable[str], owner: str) -> list[Finding]:
    """A finding for each name without a prefix that is not a flag of the model itself."""
    return [Finding(name, _unknown_flag(name, own, owner)) for name in names]


def _unknown_flag(name: str, own: Iterable[str], owner: str) -> str:
    known = names_of_flags()
    if name in known:
        return f"`{name}` must have a prefix for its half: `{ENC}{name}`, `{DEC}{name}` or both"
    typed = (*own, *(prefix + word for prefix in (ENC, DEC) for word in known))
    hint = nearest(name, typed) or "; flags begin with `enc_` or `dec_`"
    return f"`{name}` is not a flag of {owner}{hint}"


def loss_findings(decoder: TransformerWrapper, pad_value: Any) -> list[Finding]:
    """Findings for a decoder without a loss: logits that are not of its tokens, an invalid padding id."""
    findings = []
    count = decoder.num_tokens
    if decoder.logits_dim != count:
        text = f"`dec_logits_dim` must be `dec_num_tokens` = {count}, because the loss reads a logit for each"
        text = f"{text} token, but is {decoder.logits_dim}; leave it out"
        findings.append(Finding("dec_logits_dim", text))
    if not isinstance(pad_value, int) or isinstance(pad_value, bool) or not 0 <= pad_value < count:
        text = f"`pad_value` must be an id from 0 to {count - 1} (`dec_num_tokens` - 1), but is {pad_value!r}"
        findings.append(Finding("pad_value", text))
    return findings


def _mismatches(encoder: Any, decoder: TransformerWrapper, tied: bool) -> list[Finding]:
    """Findings that need both halves."""
    findings = []
    if encoder.attn_layers.has_cross:
        text = "`enc_custom_layers` must hold no 'c', because the encoder reads only the source"
        findings.append(Finding("enc_custom_layers", text))
    if not decoder.attn_layers.has_cross:
        text = "`dec_custom_layers` must hold a 'c', because the decoder reads the encoder"
        findings.append(Finding("dec_custom_layers", text))
    if tied and not isinstance(encoder, TransformerWrapper):
        text = "`tie_token_emb` and `src_dim` cannot be combined, because a source of vectors has no tokens"
        return [*findings, Finding("tie_token_emb", f"{text}; leave one of them out")]
    if not tied:
        return findings
    widths = [half.embedding.width for half in (encoder, decoder)]
    unit = [half.resolved.flags["l2norm_embed"] for half in (encoder, decoder)]
    if widths[0] != widths[1] or unit[0] != unit[1]:
        text = "`tie_token_emb` needs the same `emb_dim` and `l2norm_embed` in both halves"
        findings.append(Finding("tie_token_emb", text))
    if encoder.num_tokens != decoder.num_tokens:
        text = (
            "`tie_token_emb` needs equal vocabularies, but "
            f"`enc_num_tokens` is {encoder.num_tokens} and `dec_num_tokens` is {decoder.num_tokens}"
        )
        findings.append(Finding("tie_token_emb", text))
    return findings

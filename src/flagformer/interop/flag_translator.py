"""Translates arguments of x-transformers to flags: defaults, names, and arguments without effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.flags import Finding, FlagError, split_prefixes
from flagformer.interop.dialect import COSINE, NEW, OLD, UNIT_OFFSET, check_version

DIM_HEAD = 64
# Arguments that do not change the function of a model in x-transformers.
UNUSED = ("verbose", "attn_onnxable", "attn_z_loss_weight", UNIT_OFFSET)
# Arguments without effect at these values.
OFF = {
    "max_mem_len": 0,
    "shift_mem_down": 0,
    "num_memory_tokens": None,
    "memory_tokens_interspersed_every": None,
}


def flags_of_x_transformers(flags: Mapping[str, Any], version: str = NEW) -> dict[str, Any]:
    """Translate arguments of x-transformers to flags for `flagformer.build`.

    Args:
        flags: the arguments of the wrapper and of its layers in one dictionary, with `model` ("decoder" by
            default, "encoder", "prefix_decoder", "xtransformer" with `enc_` and `dec_`, "vit").
        version: "1.27" or "2.31".

    Raises:
        FlagError: for arguments that have a different function in x-transformers, with the reason.
    """
    check_version(version)
    rest, findings = dict(flags), list[Finding]()
    kind = rest.get("model", "decoder")
    if kind == "xtransformer":
        encoder, decoder, rest = split_prefixes(rest, "enc_", "dec_")
        for prefix, part in (("enc_", encoder), ("dec_", decoder)):
            translator = FlagTranslator(part, version, prefix, cross=prefix == "dec_")
            rest |= {prefix + name: value for name, value in translator.translate(positions=True).items()}
            findings += translator.findings
    else:
        translator = FlagTranslator(rest, version, "", cross=bool(rest.get("cross_attend")))
        rest = translator.translate(positions=kind != "vit")
        findings += translator.findings
    if findings:
        raise FlagError(findings)
    return rest


class FlagTranslator:
    """Translates the arguments of one stack and its wrapper.

    Args:
        cross: whether the stack has cross-attention.
    """

    def __init__(self, flags: Mapping[str, Any], version: str, prefix: str, cross: bool) -> None:
        self.flags = {name: value for name, value in flags.items() if name not in UNUSED}
        self.version, self.prefix, self.cross = version, prefix, cross
        self.findings: list[Finding] = []

    def translate(self, positions: bool) -> dict[str, Any]:
        """Return the flags; `positions`: whether the wrapper has absolute positions."""
        disabled = self._positions_are_disabled()
        self._set_rotation()
        self._drop_unused()
        self._refuse_different()
        if positions:
            self._set_positions(disabled)
        return self.flags

    def _refuse(self, name: str, reason: str) -> None:
        self.findings.append(Finding(self.prefix + name, f"`{self.prefix}{name}` {reason}"))

    def _positions_are_disabled(self) -> bool:
        disabled = self.flags.pop("disable_abs_pos_emb", None)
        relative = ("rel_pos_bias", "rotary_pos_emb", "rotary_xpos")
        return any(self.flags.get(name) for name in relative) if disabled is None else bool(disabled)

    def _set_positions(self, disabled: bool) -> None:
        """Set absolute positions, unless a relative scheme disabled them; ALiBi and dynamic biases do not."""
        sinusoids = self.flags.pop("scaled_sinu_pos_emb", False)
        wanted = (
            self.flags.pop("use_abs_pos_emb", True) and not disabled and self.flags.get("max_seq_len") != 0
        )
        self.flags |= (
            {"scaled_sinu_pos_emb": True} if wanted and sinusoids else {"use_abs_pos_emb": bool(wanted)}
        )

    def _set_rotation(self) -> None:
        """Rotate half of a head, in 1.27 at least 32 dimensions; xPos includes the rotation."""
        if self.flags.get("rotary_xpos"):
            self.flags.pop("rotary_pos_emb", None)
        elif not self.flags.get("rotary_pos_emb"):
            return
        half = self.flags.get("attn_dim_head", DIM_HEAD) // 2
        rotated = self.flags.get("rotary_emb_dim")
        rotated = half if rotated is None else rotated
        self.flags["rotary_emb_dim"] = max(rotated, 32) if self.version == OLD else rotated

    def _drop_unused(self) -> None:
        """Remove arguments that have no effect in x-transformers."""
        unused = {name for name, value in OFF.items() if name in self.flags and self.flags[name] == value}
        if self.version == OLD:
            unused.add("pre_norm_has_final_norm")
        if self.flags.get("custom_layers"):
            unused.add("depth")
        if self.flags.get("tie_embedding"):
            unused.add("logits_dim")
        if self.flags.get("attn_qk_norm_dim_scale"):
            unused |= {COSINE, f"cross_{COSINE}"}  # in 1.27 it multiplies the learned scales, which absorb it
        if self.flags.get("ff_glu"):
            unused.add("ff_no_bias")  # one bias is kept in x-transformers; the others are converted as zeros
        if self.flags.get("only_cross"):
            unused.add("cross_attend" if self.flags.get("cross_attend") else "only_cross")
        for name in unused:
            self.flags.pop(name, None)

    def _refuse_different(self) -> None:
        """Add findings for arguments that have a different function in x-transformers."""
        if self.version == OLD and self.flags.get("attn_sparse_topk"):
            self._refuse(
                "attn_sparse_topk",
                "of x-transformers 1.27 keeps all scores except the k largest, and selects among later "
                "tokens too; in this library and in 2.31 it keeps the k largest",
            )
        if self.cross and self.flags.get("attn_max_attend_past"):
            self._refuse(
                "attn_max_attend_past",
                "of x-transformers masks a part of the context in cross-attention too; in this library it is "
                "a window of self-attention",
            )
        if self.version == OLD and self.flags.get("attn_gate_values"):
            self.flags["attn_gate_values_bias"] = True
        if self.version == NEW:
            self._talking_heads()

    def _talking_heads(self) -> None:
        before = self.flags.pop("attn_pre_talking_heads", False)
        after = self.flags.pop("attn_post_talking_heads", False)
        if before and after:
            self.flags["attn_talking_heads"] = True
        elif before or after:
            name = f"attn_{'pre' if before else 'post'}_talking_heads"
            self._refuse(
                name,
                "without the other is not supported; `attn_talking_heads` mixes before and after the softmax",
            )

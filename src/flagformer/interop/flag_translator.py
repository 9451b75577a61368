"""Arguments of x-transformers -> flags of this library: other defaults, other words, what is idle there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.flags import Finding, FlagError, split_prefixes
from flagformer.interop.dialect import COSINE, NEW, OLD, UNIT_OFFSET, check_version

DIM_HEAD = 64
# No function of a model there: how it speaks, how it makes a mask, a weight that its constructor never uses.
IDLE = ("verbose", "attn_onnxable", "attn_z_loss_weight", UNIT_OFFSET)
# What is nothing at these values, under names that need not be known here.
OFF = {
    "max_mem_len": 0,
    "shift_mem_down": 0,
    "num_memory_tokens": None,
    "memory_tokens_interspersed_every": None,
}


def flags_of_x_transformers(flags: Mapping[str, Any], version: str = NEW) -> dict[str, Any]:
    """The flags that make `flagformer.build` build what x-transformers builds of its own arguments.

    Args:
        flags: the arguments of the wrapper and of its layers in one dictionary, with `model` ("decoder" when
            left out, "encoder", "prefix_decoder", "xtransformer" with `enc_` and `dec_`, "vit").
        version: "1.27" or "2.31".

    Raises:
        FlagError: for what is another function there, with the reason.
    """
    check_version(version)
    rest, findings = dict(flags), list[Finding]()
    kind = rest.get("model", "decoder")
    if kind == "xtransformer":
        encoder, decoder, rest = split_prefixes(rest, "enc_", "dec_")
        for prefix, half in (("enc_", encoder), ("dec_", decoder)):
            words = FlagTranslator(half, version, prefix, crosses=prefix == "dec_")
            rest |= {prefix + name: value for name, value in words.translated(places=True).items()}
            findings += words.findings
    else:
        words = FlagTranslator(rest, version, "", crosses=bool(rest.get("cross_attend")))
        rest = words.translated(places=kind != "vit")
        findings += words.findings
    if findings:
        raise FlagError(findings)
    return rest


class FlagTranslator:
    """The arguments of one stack and its wrapper, read once and rewritten."""

    def __init__(self, flags: Mapping[str, Any], version: str, prefix: str, crosses: bool) -> None:
        self.flags = {name: value for name, value in flags.items() if name not in IDLE}
        self.version, self.prefix, self.crosses = version, prefix, crosses
        self.findings: list[Finding] = []

    def translated(self, places: bool) -> dict[str, Any]:
        """Args: places: whether the wrapper has absolute positions."""
        disabled = self._positions_are_disabled()
        self._rotation()
        self._dead()
        self._different()
        if places:
            self._places(disabled)
        return self.flags

    def _refuse(self, name: str, reason: str) -> None:
        self.findings.append(Finding(self.prefix + name, f"`{self.prefix}{name}` {reason}"))

    def _positions_are_disabled(self) -> bool:
        said = self.flags.pop("disable_abs_pos_emb", None)
        relative = ("rel_pos_bias", "rotary_pos_emb", "rotary_xpos")
        return any(self.flags.get(name) for name in relative) if said is None else bool(said)

    def _places(self, disabled: bool) -> None:
        """Absolute positions unless a relative scheme turned them off; ALiBi and dynamic biases do not."""
        sinusoids = self.flags.pop("scaled_sinu_pos_emb", False)
        wanted = (
            self.flags.pop("use_abs_pos_emb", True) and not disabled and self.flags.get("max_seq_len") != 0
        )
        self.flags |= (
            {"scaled_sinu_pos_emb": True} if wanted and sinusoids else {"use_abs_pos_emb": bool(wanted)}
        )

    def _rotation(self) -> None:
        """Half of a head is turned, in 1.27 never less than 32 dims; xPos includes the rotation."""
        if self.flags.get("rotary_xpos"):
            self.flags.pop("rotary_pos_emb", None)
        elif not self.flags.get("rotary_pos_emb"):
            return
        half = self.flags.get("attn_dim_head", DIM_HEAD) // 2
        turned = self.flags.get("rotary_emb_dim")
        turned = half if turned is None else turned
        self.flags["rotary_emb_dim"] = max(turned, 32) if self.version == OLD else turned

    def _dead(self) -> None:
        """Arguments that have no effect there."""
        dead = {name for name, value in OFF.items() if name in self.flags and self.flags[name] == value}
        if self.version == OLD:
            dead.add("pre_norm_has_final_norm")
        if self.flags.get("custom_layers"):
            dead.add("depth")
        if self.flags.get("tie_embedding"):
            dead.add("logits_dim")
        if self.flags.get("attn_qk_norm_dim_scale"):
            dead |= {COSINE, f"cross_{COSINE}"}  # in 1.27 it multiplies the learned gains, which take it over
        if self.flags.get("ff_glu"):
            dead.add("ff_no_bias")  # one bias stays, the others are carried as zeros
        if self.flags.get("only_cross"):
            dead.add("cross_attend" if self.flags.get("cross_attend") else "only_cross")
        for name in dead:
            self.flags.pop(name, None)

    def _different(self) -> None:
        """What is another function there."""
        if self.version == OLD and self.flags.get("attn_sparse_topk"):
            self._refuse(
                "attn_sparse_topk",
                "of x-transformers 1.27 keeps all scores but the k largest, and picks among later ones too; "
                "here and in 2.31 it keeps the k largest",
            )
        if self.crosses and self.flags.get("attn_max_attend_past"):
            self._refuse(
                "attn_max_attend_past",
                "of x-transformers hides a part of the context from cross-attention too; here it is a window "
                "of self-attention",
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
            self._refuse(name, "alone is not here; `attn_talking_heads` mixes on both sides")

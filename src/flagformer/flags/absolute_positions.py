"""Whether a model adds absolute positions, by its own flags and those of its layers."""

from __future__ import annotations

from typing import Any

from flagformer.flags.errors import Finding, FlagError


def with_positions(given: dict[str, Any], disabled: bool | None, is_relative: bool) -> dict[str, Any]:
    """The model's flags with `use_abs_pos_emb` set; FlagError if they contradict the layers'.

    Args:
        given: flags of the model; `use_abs_pos_emb` None: to be chosen.
        disabled: the layers' `disable_abs_pos_emb`.
        is_relative: whether the layers have relative positions.
    """
    own = given.get("use_abs_pos_emb")
    custom = "absolute" in given
    sinusoids = given.get("scaled_sinu_pos_emb")
    findings = []
    if disabled and own:
        findings.append(_contradiction("use_abs_pos_emb=True", "disable_abs_pos_emb=True"))
    if disabled and custom:
        findings.append(_contradiction("absolute", "disable_abs_pos_emb=True"))
    if disabled and sinusoids:
        findings.append(_contradiction("scaled_sinu_pos_emb", "disable_abs_pos_emb=True"))
    if disabled is False and own is False and not sinusoids:
        findings.append(_contradiction("use_abs_pos_emb=False", "disable_abs_pos_emb=False"))
    if disabled is False and own is None and not sinusoids and not custom and not given["max_seq_len"]:
        text = "`max_seq_len` must be at least 1 under `disable_abs_pos_emb=False`, but is 0"
        findings.append(Finding("max_seq_len", text))
    if findings:
        raise FlagError(findings)
    if own is not None:
        return given
    if sinusoids or custom:
        return {name: value for name, value in given.items() if name != "use_abs_pos_emb"}
    wanted = not (is_relative if disabled is None else disabled)
    return {**given, "use_abs_pos_emb": wanted and given["max_seq_len"] > 0}


def _contradiction(own: str, theirs: str) -> Finding:
    name = own.split("=")[0]
    return Finding(name, f"`{own}` and `{theirs}` cannot be combined, because they contradict each other")

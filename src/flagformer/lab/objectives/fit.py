"""Checks that an objective, a model and the data belong together, before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.lab.data import Source
from flagformer.lab.objectives import KINDS, Objective


def refuse_misfit(
    objective: Objective, source: Source, flags: Mapping[str, Any], segment: int | None
) -> None:
    """Raise ValueError if the objective does not train this kind of model, or not on this data.

    Args:
        flags: the flags as typed, with `model`.
        segment: `train.segment`.
    """
    kind, name = flags["model"], objective.model_dump()["name"]
    if kind in KINDS and (why := objective.misfit(flags)):
        wanted = objective.trains[0]
        if len(objective.trains) > 1:
            wanted = f"one of {', '.join(objective.trains)}"
        raise ValueError(f"`model` must be {wanted} for `objective: {name}`, but is {kind!r}: {why}")
    if why := objective.data_misfit(source, flags):
        data = source.model_dump()["source"]
        raise ValueError(f"`source` must be another one for `objective: {name}`, but is {data}: {why}")
    if source.is_packed and not objective.reads_packed:
        raise ValueError(
            f"`packing` must be windows for `objective: {name}`, which reads no lengths of documents"
        )
    if source.is_packed and segment is not None:
        raise ValueError("`segment` must be left out with packed or padded rows, or use `packing: windows`")
    if segment is not None and objective.without_segments:
        of = "images" if source.form == "images" else f"`objective: {name}`"
        raise ValueError(f"`segment` must be left out for {of}, because {objective.without_segments}")


def check_lengths(model: Any, sizes: Mapping[str, Any], in_segments: bool) -> None:
    """Raise ValueError if the data's rows are longer than a model with limited rows allows.

    Args:
        sizes: the result of `Objective.sizes`.
    """
    for name, part in parts_of(model).items():
        wanted = sizes.get(name)
        slots = bool(getattr(part, "num_memory_slots", 0))
        if wanted is None or not (part.absolute_positions or slots) or wanted <= part.max_seq_len:
            continue
        why = "memory slots, written after each segment"
        if part.absolute_positions:
            why = "absolute positions"
        row = "segment" if in_segments else "row"
        raise ValueError(
            f"`{name}` must be at least {wanted}, the length of the longest {row}, because "
            f"the model has {why}, but is {part.max_seq_len}; raise it or leave it out"
        )


def parts_of(model: Any) -> dict[str, Any]:
    """The parts of a model that read rows of tokens or vectors, by the flag of their length."""
    kind = model.flags["model"]
    if kind == "vit":
        return {}
    if kind == "classifier":
        return {"max_seq_len": model.encoder}
    if kind in ("xtransformer", "memformer"):
        decoder = {} if model.decoder is None else {"dec_max_seq_len": model.decoder.net}
        return {"enc_max_seq_len": model.encoder, **decoder}
    if kind == "routing_encdec":
        return {"enc_max_seq_len": model.enc, "dec_max_seq_len": model.dec.net}
    return {"max_seq_len": model.net if kind == "routing_lm" else model}

"""The part of `docs/flags.md` on the features that each flag supports: caches, padding, packing, ..."""

from __future__ import annotations

from flagformer.flags import MODEL_SCOPES
from flagformer.lab.reference.entries import entries
from flagformer.lab.reference.features import Feature, features, refusals
from flagformer.lab.reference.markdown import code, page, table

YES, NO, UNKNOWN = "yes", "no", ""


def together_part() -> str:
    """Return a table with a row per flag and a column per feature, then the reasons of refusals."""
    columns = features()
    rows, reasons = [], []
    for entry in entries(MODEL_SCOPES):
        cells = [answer(entry.name, feature) for feature in columns]
        rows.append((code(entry.name), *(cell for cell, _ in cells)))
        found = zip(columns, cells)
        reasons += [(code(entry.name), feature.name, why) for feature, (_, why) in found if why]
    return page(
        "## Supported features",
        "Each flag is set on a small decoder (an encoder, if decoders refuse the flag), which is then built "
        "and called with the feature of the column. "
        f"`{YES}`: it is supported, and tests check the property for that flag. A cell is empty where a flag "
        "needs inputs other than ids, or is fixed by the kind of model.",
        "\n".join(f"- *{feature.name}*: {feature.holds}." for feature in columns),
        table(("flag", *(feature.name for feature in columns)), rows),
        table(("flag", "does not support", "because"), reasons),
    ).rstrip()


def answer(flag: str, feature: Feature) -> tuple[str, str]:
    """Return the cell of a flag, and the reason for a "no"."""
    found = refusals(flag)[feature.name]
    if not found:
        return UNKNOWN, ""
    why = " ".join(dict.fromkeys(filter(None, found)))
    return (NO, why) if why else (YES, "")

"""The part of `docs/flags.md` that says what a flag goes with: caches, padding, packing, tracing, ..."""

from __future__ import annotations

from flagformer.flags import MODEL_SCOPES
from flagformer.reference.entries import entries
from flagformer.reference.features import Feature, features, refusal, settings_of
from flagformer.reference.markdown import code, page, table

YES, NO, UNKNOWN = "yes", "no", ""


def together_part() -> str:
    """A row for each flag, a column for each feature; refusals with their reasons behind."""
    columns = features()
    rows, reasons = [], []
    for entry in entries(MODEL_SCOPES):
        cells = [answer(entry.name, feature) for feature in columns]
        rows.append((code(entry.name), *(cell for cell, _ in cells)))
        found = zip(columns, cells)
        reasons += [(code(entry.name), feature.name, why) for feature, (_, why) in found if why]
    return page(
        "## Together with",
        "Asked of a small decoder with the flag set, by building it with what the column needs and calling "
        f"it; `{YES}` where nothing refuses, and the tests hold it for that flag. Nothing is said where a "
        "flag asks for inputs beside ids, or is fixed by the kind of model.",
        "\n".join(f"- *{feature.name}*: {feature.holds}." for feature in columns),
        table(("flag", *(feature.name for feature in columns)), rows),
        table(("flag", "not with", "because"), reasons),
    ).rstrip()


def answer(flag: str, feature: Feature) -> tuple[str, str]:
    """The cell of a flag, and why it says no."""
    found = [refusal(feature, flags) for flags in settings_of(flag)]
    if not found:
        return UNKNOWN, ""
    why = " ".join(dict.fromkeys(filter(None, found)))
    return (NO, why) if why else (YES, "")

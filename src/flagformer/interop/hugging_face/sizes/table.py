"""Tables of sizes: a row for each model, a column for each field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Size(NamedTuple):
    """The size of a published model.

    Attributes:
        model_type: of its family.
        config: fields of its config.
        params: the published number of parameters, tied ones once; None where it is not known.
    """

    model_type: str
    config: Mapping[str, Any]
    params: int | None


# The columns of Llama and its relatives.
SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
LONG = f"{SIZES} max_position_embeddings"
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def sizes(model_type: str, columns: str, rows: str, shared: Mapping[str, Any]) -> dict[str, Size]:
    """A size for each row.

    Args:
        columns: names of fields, separated by spaces.
        rows: lines of a name, the number of parameters or "-", and the values of the columns.
        shared: fields that all rows have.
    """
    names = columns.split()
    found = {}
    for row in rows.strip().splitlines():
        name, params, *values = row.split()
        assert len(values) == len(names), row
        config = {**shared, **dict(zip(names, map(_number, values)))}
        found[name] = Size(model_type, config, None if params == "-" else int(params))
    return found


def _number(text: str) -> int | float | None:
    if text == "-":
        return None
    return float(text) if "." in text or "e" in text else int(text)


def theta(value: float) -> dict[str, Any]:
    """The field of rotary positions with this base."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": value}}


def llama3(factor: float) -> dict[str, Any]:
    """The scaled rotary positions of Llama 3.1 and later."""
    scaling = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return {"rope_parameters": scaling}

"""`docs/parity.md` describes every argument of x-transformers 1.27 correctly."""

import inspect
import re
from typing import Any

import pytest
from parity_case import OLD
from parity_cases import SINGLE, WHOLE, WITHOUT_PARITY
from parity_page import PAGE, PREFIXES, ROWS, Row, counterparts

import flagformer
from flagformer.flags import CATALOGUE
from flagformer.interop import flags_of_x_transformers

VERDICTS = {"equal", "differs", "refused", "inner"}
OURS = {
    "AttentionLayers": flagformer.AttentionLayers,
    "TransformerWrapper": flagformer.TransformerWrapper,
    "ViTransformerWrapper": flagformer.ViTransformerWrapper,
    "XTransformer": flagformer.XTransformer,
    "AutoregressiveWrapper": flagformer.AutoregressiveWrapper,
}
# Arguments of a case that are implied: the class, or those of every model.
UNNAMED = {"causal", "attn_layers", "net", "ignore_index", "pad_value"}


LABELS = [f"{row.of} {row.name}" for row in ROWS]


def test_the_page_lists_exactly_the_arguments(old_peer: dict[str, Any]) -> None:
    documented = {
        of: {row.name: row.default for row in ROWS if row.of == of} for of in {row.of for row in ROWS}
    }
    assert documented == old_peer["signatures"]


def test_every_table_row_is_parsed() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(lines) == len(ROWS)
    assert {row.verdict for row in ROWS} == VERDICTS


@pytest.mark.parametrize("row", ROWS, ids=LABELS)
def test_every_named_flag_exists(row: Row) -> None:
    if row.verdict in ("inner", "refused"):
        assert row.why
        return
    assert row.verdict == "equal" or len(row.why) > 15, "a difference has a reason"
    name = row.here.strip("`").split("=")[0]
    assert name in known(row.of)


def known(of: str) -> set[str]:
    """Flags if something is built, our parameters if something is called."""
    owner, _, method = of.partition(".")
    if method:
        return set(inspect.signature(getattr(OURS[owner], method)).parameters)
    own = set(inspect.signature(OURS[owner]).parameters) if owner in OURS else set()
    return own | set(CATALOGUE.names()) | {"layer_dropout"}


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.verdict == "equal" and "." not in row.of],
    ids=lambda row: f"{row.of} {row.name}",
)
def test_equal_arguments_have_a_case(row: Row) -> None:
    cases = [case for case in {**SINGLE, **WHOLE}.values() if OLD in case.versions]
    said = {re.sub(r"^(enc|dec)_", "", name) for case in cases for name in case.peer_flags(OLD)}
    name = PREFIXES.get(row.of, "") + row.name
    if name == "attn_dim_context":
        name = "cross_attn_dim_context"
    assert name in said | UNNAMED


@pytest.mark.parametrize("row", [row for row in ROWS if row.verdict == "refused"], ids=lambda row: row.name)
def test_refused_arguments_are_refused(row: Row) -> None:
    name = PREFIXES.get(row.of, "") + row.name
    with pytest.raises(flagformer.FlagError, match=f"`{name}`"):
        flagformer.Decoder(dim=32, depth=1, **{name: 16})


def test_an_argument_with_another_meaning_is_refused() -> None:
    with pytest.raises(flagformer.FlagError, match="attn_sparse_topk"):
        flags_of_x_transformers({"attn_sparse_topk": 4}, OLD)


def test_every_flag_with_a_counterpart_is_on_the_page() -> None:
    names = {*counterparts(), *(name for free in WITHOUT_PARITY.values() for name in free)}
    assert not [name for name in names if f"`{name}" not in PAGE]

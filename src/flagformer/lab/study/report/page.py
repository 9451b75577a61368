"""HTML elements of the page: escaped text, tables, figures. No scripts, no external links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from flagformer.lab.study.formatting import NOTHING, count
from flagformer.lab.study.report.columns import Column, setting_text
from flagformer.lab.study.results import Results, TrialState, VariantResult

Cell = tuple[str, str]  # text, CSS class; a second line of the text is small print


def text(plain: str) -> str:
    """Escaped text; text between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(plain))


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document."""
    style = files("flagformer.lab.study.report").joinpath("style.css").read_text(encoding="utf-8")
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, *inside: str) -> str:
    """A heading and its contents."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(inside) + "\n</section>"


def paragraph(plain: str, kind: str = "") -> str:
    """One paragraph; `kind` is a CSS class."""
    if not plain:
        return ""
    return f'<p class="{kind}">{text(plain)}</p>' if kind else f"<p>{text(plain)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "<ul>\n" + "\n".join(f"<li>{text(line)}</li>" for line in lines) + "\n</ul>"


def figure(svg: str, finding: str, note: str) -> str:
    """A figure with a caption: its finding and a note on how to read it."""
    caption = f"{text(finding)} <span class='soft'>{text(note)}</span>"
    return f"<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table that scrolls horizontally if the page is too narrow."""
    rows = list(rows)
    kinds = [" ".join(set(kind.split()) & {"left", "wrap"}) for _, kind in rows[0]]
    head = "".join(f'<th scope="col" class="{kind}">{text(name)}</th>' for name, kind in zip(heads, kinds))
    body = "\n".join("<tr>" + "".join(_cell(*cell) for cell in row) + "</tr>" for row in rows)
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table>\n{inside}\n</table></div>'


def rows_table(results: Results, columns: Sequence[Column]) -> str:
    """A table with one row per variant."""
    heads = [column.heading for column in columns]
    return table(heads, ([_column_cell(column, row) for column in columns] for row in results.rows))


def trial_table(results: Results) -> str:
    """The state of every trial."""
    heads = ["variant", "seed", "state", "steps", "loss", "id", "remark"]
    rows = []
    for trial in results.trials:
        loss = [
            e["nats"]
            for e in (trial.result or {}).get("evaluation", [])
            if e["seq_len"] == results.loss_length
        ]
        shown = f"{loss[0]:.4f}" if loss and loss[0] is not None else NOTHING
        bad = "worse" if trial.state in ("failed", "diverged") else ""
        rows.append([
            (_trial_name(trial), "left"), (str(trial.run.seed), ""), (trial.state, bad or "left"),
            (count(trial.steps), ""), (shown, ""), (trial.run.trial.id, "left"), (trial.detail, "wrap"),
        ])  # fmt: skip
    return table(heads, rows)


def _trial_name(trial: TrialState) -> str:
    candidate = setting_text(trial.run.tuned)
    return f"{trial.run.variant}, {candidate}" if candidate else trial.run.variant


def _column_cell(column: Column, row: VariantResult) -> Cell:
    small = column.small(row)
    return (f"{column.text(row)}\n{small}" if small else column.text(row), column.kind(row))


def _cell(plain: str, kind: str) -> str:
    first, _, small = plain.partition("\n")
    inside = escape(first) + (
        f'<br><span class="soft">{escape(small).replace("_", "_<wbr>")}</span>' if small else ""
    )
    return f'<td class="{kind}">{inside}</td>' if kind else f"<td>{inside}</td>"

"""The pieces of the page: escaped text, tables, figures. No scripts, no links to anything outside the
file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from flagformer.study.results import BITS, Results, Row
from flagformer.study.wording import NOTHING, count, difference, estimate, flags_text, p_value, short

Cell = tuple[str, str]  # text, CSS class; a second line of the text is small print


def text(plain: str) -> str:
    """Escaped text; what stands between backticks is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(plain))


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document."""
    style = files("flagformer.study.report").joinpath("style.css").read_text(encoding="utf-8")
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, *inside: str) -> str:
    """A heading and what stands under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(inside) + "\n</section>"


def paragraph(plain: str, kind: str = "") -> str:
    """One paragraph; `kind` is a CSS class."""
    return f'<p class="{kind}">{text(plain)}</p>' if kind else f"<p>{text(plain)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "<ul>\n" + "\n".join(f"<li>{text(line)}</li>" for line in lines) + "\n</ul>"


def figure(svg: str, finding: str, note: str) -> str:
    """A figure with its finding and how to read it."""
    caption = f"{text(finding)} <span class='soft'>{text(note)}</span>"
    return f"<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table that scrolls inside its own box where the page is too narrow for it."""
    rows = list(rows)
    kinds = [kind if kind in ("left", "wrap") else "" for _, kind in rows[0]]
    head = "".join(f'<th scope="col" class="{kind}">{text(name)}</th>' for name, kind in zip(heads, kinds))
    body = "\n".join("<tr>" + "".join(_cell(*cell) for cell in row) + "</tr>" for row in rows)
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table>\n{inside}\n</table></div>'


def main_table(results: Results) -> str:
    """Size, speed and held-out loss, one row a variant."""
    heads = [
        "variant",
        "parameters",
        "FLOPs per token",
        "tokens/s *",
        f"loss at {results.loss_length}",
    ]
    heads += [f"difference from {results.study.baseline}", "p (Holm)", "verdict"]
    return table(heads, (_main_row(row) for row in results.rows))


def length_table(results: Results) -> str:
    """Quality at every tested length, with the difference from the baseline."""
    name = "bits per byte" if results.metric == BITS else "accuracy"
    heads = ["variant"]
    for length in results.rows[0].quality:
        heads += [f"{name} at {length}", "difference"]
    rows = []
    for row in results.rows:
        cells: list[Cell] = [(row.variant, "left")]
        for length, value in row.quality.items():
            against = row.quality_difference.get(length)
            cells += [(estimate(value), ""), (difference(against), against.verdict if against else "")]
        rows.append(cells)
    return table(heads, rows)


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
            (trial.run.variant, "left"), (str(trial.run.seed), ""), (trial.state, bad or "left"),
            (count(trial.steps), ""), (shown, ""), (trial.run.trial.id, "left"), (trial.detail, "wrap"),
        ])  # fmt: skip
    return table(heads, rows)


def _main_row(row: Row) -> list[Cell]:
    cells: list[Cell] = [
        (f"{row.variant}\n{flags_text(row.flags)}", "wrap"), (count(row.params), ""),
        (short(row.flops_per_token), ""), (short(row.tokens_per_second), ""), (estimate(row.loss), ""),
    ]  # fmt: skip
    if row.difference is None:
        return [*cells, ("baseline", ""), ("", ""), ("", "")]
    verdict = row.difference.verdict
    return [
        *cells,
        (difference(row.difference), ""),
        (p_value(row.difference.p_holm), ""),
        (verdict, verdict),
    ]


def _cell(plain: str, kind: str) -> str:
    first, _, small = plain.partition("\n")
    inside = escape(first) + (
        f'<br><span class="soft">{escape(small).replace("_", "_<wbr>")}</span>' if small else ""
    )
    return f'<td class="{kind}">{inside}</td>' if kind else f"<td>{inside}</td>"

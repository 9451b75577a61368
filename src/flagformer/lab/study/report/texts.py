"""The report as Markdown, as CSV and as a LaTeX table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from flagformer.lab.study.formatting import MINUS
from flagformer.lab.study.planned import change_line
from flagformer.lab.study.report import findings, interactions
from flagformer.lab.study.report.columns import Column, cost_columns, length_columns, main_columns
from flagformer.lab.study.report.curves import read_curves
from flagformer.lab.study.report.fairness import equal_lines, setting_lines, unequal_lines
from flagformer.lab.study.results import Results

TEX = str.maketrans({
    "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", MINUS: "$-$",
    "<": "$<$", ">": "$>$", "\N{NO-BREAK SPACE}": "~",
    "\N{EN DASH}": "--", "\N{CHECK MARK}": r"$\checkmark$", "\N{MULTIPLICATION X}": r"$\times$",
})  # fmt: skip
MARKDOWN = str.maketrans({"|": r"\|", "*": r"\*", "<": "&lt;"})


def markdown(results: Results, note: str) -> str:
    """The tables, the finding of each figure, and the lists of what was equal and what differed."""
    _, final = read_curves(results)
    sentences = [
        findings.curves_finding(results, final),
        findings.lengths_finding(results) if len(results.rows[0].quality) > 1 else "",
        findings.differences_finding(results),
        findings.power_line(results),
        findings.unstable_line(results),
        interactions.effects_finding(results),
        change_line(results.study, results.design),
        findings.tuning_finding(results),
        findings.speed_finding(results),
    ]
    parts = [
        f"# {results.study.name}",
        findings.headline(results),
        markdown_table(results, main_columns(results)),
        note.translate(MARKDOWN),
        *(f"- {line}" for line in sentences if line),
        *(["## Effects and interactions", interactions.markdown_effects(results)] if results.effects else []),
        f"## {results.metric.capitalize()} by length",
        markdown_table(results, length_columns(results)),
        "## Cost",
        markdown_table(results, cost_columns(results)),
        "## Equal for all variants",
        "\n".join(f"- {line}" for line in equal_lines(results)),
        "## Different between variants",
        "\n".join(f"- {line}" for line in unequal_lines(results)),
        "## Environment",
        "\n".join(f"- {line}" for line in setting_lines(results)),
    ]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def markdown_table(results: Results, columns: Sequence[Column]) -> str:
    """A pipe table with right-aligned numbers."""
    lines = [
        "| " + " | ".join(column.heading.translate(MARKDOWN) for column in columns) + " |",
        "|" + "|".join("---" if index == 0 else "---:" for index, _ in enumerate(columns)) + "|",
    ]
    for row in results.rows:
        lines.append("| " + " | ".join(column.text(row).translate(MARKDOWN) for column in columns) + " |")
    return "\n".join(lines)


def csv_table(results: Results) -> str:
    """All numbers of the main, length and cost tables, one line per variant, in full precision."""
    columns = [*main_columns(results), *length_columns(results), *cost_columns(results)]
    rows = [
        {key: value for column in columns for key, value in column.values(row).items()}
        for row in results.rows
    ]
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def latex_table(results: Results) -> str:
    """The main table as LaTeX; needs the package booktabs."""
    columns = main_columns(results)
    kinds = "l" + "r" * (len(columns) - 1)
    rows = [
        " & ".join(column.text(row).translate(TEX) for column in columns) + r" \\" for row in results.rows
    ]
    head = " & ".join(column.heading.translate(TEX) for column in columns) + r" \\"
    return "\n".join([
        "% needs \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *rows,
        r"\bottomrule", r"\end{tabular}", "",
    ])  # fmt: skip

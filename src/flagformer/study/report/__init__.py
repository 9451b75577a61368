"""The report: one HTML file that needs nothing else, made from a run directory at any time; the same as
Markdown, CSV and LaTeX.

Read `render` for the order of the page, then `columns.py`, `figures.py` and `page.py`; `findings.py` and
`fairness.py` put the numbers into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from flagformer.study.directory import REPORT, STUDY
from flagformer.study.formatting import listed, plural
from flagformer.study.report import curves, figures, findings, page, texts
from flagformer.study.report.columns import cost_columns, length_columns, main_columns
from flagformer.study.report.fairness import equal_lines, setting_lines, unequal_lines
from flagformer.study.results import BITS, Results

NOTE = (
    "Valid: causal, neutral to padding, equal with cache, independent of the batch, deterministic, finite. "
    "Loss: held-out nats per scored token, mean ± 95 % t interval over seeds. Differences are paired by "
    "seed; the verdict is that of the "
    "paired t test, Holm-corrected over the variants, at 5 %, and asks that the signs of the "
    "differences bear it "
    "out (exact sign-flip test; below six seeds: that all agree). A variant that fails the audit "
    "gets no verdict. "
    "FLOPs per token: forward pass at the training "
    "length, two per "
    "multiply-add of matrix products, attention by the keys that are computed. * Measured: tokens/s of "
    "training, median over "
    "seeds, with the other trials "
    "running beside it, and the peak memory of a trial beyond what its process held before its model was "
    "built (Python, torch); they differ from run to run, "
    "all other columns "
    "do not."
)
COST_NOTE = (
    "Kept for backward: what one micro-batch of training keeps, in fp32, as autograd's hooks see "
    "it; training memory "
    "adds weights, gradients and AdamW's moments. Decoding: one row of 64 new tokens, greedy; its "
    "state is what each "
    "further token adds. Active: without the rows of tables that a token does not look up."
)


def documents(results: Results) -> dict[str, str]:
    """Every file of the report by its name."""
    shown = _figures(results)
    return {
        REPORT: render(results, shown),
        "report.md": texts.markdown(results, NOTE),
        "table.csv": texts.csv_table(results),
        "table.tex": texts.latex_table(results),
        **{f"figure-{one.name}.svg": figures.alone(one.svg) for one in shown},
    }


class Shown(NamedTuple):
    """A figure with its finding and how to read it."""

    name: str
    svg: str
    finding: str
    note: str


def render(results: Results, shown: Sequence[Shown]) -> str:
    """The page as text."""
    study = results.study
    drawn = "\n".join(page.figure(one.svg, one.finding, one.note) for one in shown)
    plain = (results.directory / STUDY).read_text(encoding="utf-8")
    return page.page(
        f"Study: {study.name}",
        [
            _head(results),
            page.section(
                "Comparison", page.rows_table(results, main_columns(results)), page.paragraph(NOTE, "soft")
            ),
            page.section("Figures", f'<div class="figures">\n{drawn}\n</div>'),
            page.section(
                f"{results.metric.capitalize()} by length",
                page.rows_table(results, length_columns(results)),
                _length_note(results),
            ),
            page.section(
                "Cost", page.rows_table(results, cost_columns(results)), page.paragraph(COST_NOTE, "soft")
            ),
            page.section("What was equal", page.bullets(equal_lines(results))),
            page.section("What was not", page.bullets(unequal_lines(results))),
            page.section("Trials", page.trial_table(results)),
            page.section("Where it ran", page.bullets(setting_lines(results))),
            page.section("The resolved study file", f"<pre>{escape(plain)}</pre>"),
        ],
    )


def _head(results: Results) -> str:
    study = results.study
    candidates = f", {plural(len(study.candidates), 'candidate')} of tuning" if study.tune else ""
    about = (
        f"{plural(len(study.compare), 'variant')} ({listed(list(study.compare))}) compared with "
        f"{plural(len(study.seeds), 'seed')} each{candidates}; "
        f"{study.train.steps:,} steps on `{study.data_name}`; the baseline is {study.baseline}."
    )
    states = ", ".join(
        f"{results.count(state)} {state}"
        for state in ("finished", "diverged", "failed", "unfinished", "waiting")
        if results.count(state)
    )
    lines = [
        f"<h1>{escape(study.name)}</h1>",
        page.paragraph(findings.headline(results), "headline"),
        page.paragraph(findings.invalid_line(results), "warning"),
        page.paragraph(about),
        page.paragraph(f"Trials: {states}.", "soft"),
    ]
    return "\n".join(line for line in lines if line)


def _figures(results: Results) -> list[Shown]:
    drawn, final = curves.read_curves(results)
    note = "Lines are means over seeds, smoothed; bands run from the lowest to the highest seed."
    finding = findings.curves_finding(results, final)
    shown = [Shown("curves", figures.loss_curves(results, drawn), finding, note)]
    if len(results.rows) > 1:
        note = (
            "Dots with bars are means with 95 % t intervals of the paired difference; ticks are "
            "single seeds. " + findings.power_line(results)
        )
        finding = findings.differences_finding(results)
        shown.append(Shown("differences", figures.differences(results), finding, note))
    if len(results.rows[0].quality) > 1:
        note, finding = "Bars are 95 % t intervals over seeds.", findings.lengths_finding(results)
        shown.append(Shown("lengths", figures.quality_by_length(results), finding, note))
    if any(row.by_position for row in results.rows):
        note = "Means over seeds and equal parts of rows; ups and downs that all share are the text's."
        finding = findings.position_finding(results)
        shown.append(Shown("positions", figures.loss_by_position(results), finding, note))
    for key in figures.tuned_numbers(results):
        note = "Validation loss, mean over seeds; bars are 95 % t intervals; the ring marks what was chosen."
        name, finding = f"tuned-{key.replace('.', '-')}", findings.tuning_finding(results)
        shown.append(Shown(name, figures.loss_by_setting(results, key), finding, note))
    note = "Measured on this machine with the other trials running beside it."
    finding = findings.speed_finding(results)
    shown.append(Shown("speed", figures.quality_by_speed(results), finding, note))
    return shown


def _length_note(results: Results) -> str:
    text = results.study.data.metric
    unit = "Bits per byte: nats / ln 2 a byte. " if results.metric == BITS else ""
    chance = "" if results.chance is None else f" Chance level: {results.chance:.4g}."
    return page.paragraph(f"{unit}Scored is {text}.{chance} Intervals and differences as above.", "soft")

"""The report of a run directory: one self-contained HTML file, and the same as Markdown, CSV and LaTeX.

`render` gives the order of the page; see `columns.py`, `figures.py` and `page.py`. `findings.py` and
`fairness.py` write the sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from flagformer.lab.study.design import Study
from flagformer.lab.study.directory import REPORT, STUDY
from flagformer.lab.study.formatting import listed, plural
from flagformer.lab.study.planned import change_line, design_lines
from flagformer.lab.study.report import curves, figures, findings, interactions, page, texts
from flagformer.lab.study.report.columns import cost_columns, length_columns, main_columns
from flagformer.lab.study.report.fairness import equal_lines, setting_lines, unequal_lines
from flagformer.lab.study.results import BITS, Results

NOTE = (
    "Valid: causal, unaffected by padding, the same with a cache, independent of the batch, deterministic, "
    "finite. "
    "Loss: held-out {unit} per scored token, mean ± 95 % t interval over seeds. Differences are paired by "
    "seed; their intervals hold with 95 % for all variants together, and a variant is better or worse where "
    "its interval excludes zero, with step-down (Dunnett's bound, variances moderated over variants). With a "
    "margin, it is equivalent where its 90 % interval, again for all together, lies within it. The rule "
    "assumes independent seeds, and variances within a factor of four. A variant with a diverged seed is "
    "unstable, and one that fails the audit is invalid: neither gets a verdict from its loss. "
    "FLOPs per token: forward pass at the training length, two per multiply-add of matrix products; "
    "attention counts the keys that are computed. * Measured: tokens/s of "
    "training (median over seeds, while other trials run) and the peak memory of a trial, without the memory "
    "of its process before the model was built (Python, torch). Measured columns differ from run to run, all "
    "others are reproducible."
)
COST_NOTE = (
    "Saved for backward: the tensors that autograd saves for one micro-batch of training, in fp32. Training "
    "memory adds weights, gradients and AdamW's moments. Decoding: one row of 64 new tokens, greedy. Decode "
    "state per token: the growth of the decode state with each token. Active parameters: an embedding table "
    "counts one row per token."
)


def documents(results: Results) -> dict[str, str]:
    """The contents of every file of the report, by file name."""
    shown = _figures(results)
    return {
        REPORT: render(results, shown),
        "report.md": texts.markdown(results, _note(results)),
        "table.csv": texts.csv_table(results),
        "table.tex": texts.latex_table(results),
        **({"effects.csv": interactions.csv_effects(results)} if results.effects else {}),
        **{f"figure-{one.name}.svg": figures.standalone(one.svg) for one in shown},
    }


class Shown(NamedTuple):
    """A figure with its finding and a note on how to read it."""

    name: str
    svg: str
    finding: str
    note: str


def render(results: Results, shown: Sequence[Shown]) -> str:
    """The HTML page."""
    study = results.study
    drawn = "\n".join(page.figure(one.svg, one.finding, one.note) for one in shown)
    plain = (results.directory / STUDY).read_text(encoding="utf-8")
    return page.page(
        f"Study: {study.name}",
        [
            _head(results),
            page.section(
                "Comparison",
                page.rows_table(results, main_columns(results)),
                page.paragraph(_note(results), "soft"),
            ),
            *([effects] if (effects := _effects(results)) else []),
            page.section("Figures", f'<div class="figures">\n{drawn}\n</div>'),
            page.section(
                f"{results.metric.capitalize()} by length",
                page.rows_table(results, length_columns(results)),
                _length_note(results),
            ),
            page.section(
                "Cost", page.rows_table(results, cost_columns(results)), page.paragraph(COST_NOTE, "soft")
            ),
            page.section("Equal for all variants", page.bullets(equal_lines(results))),
            page.section("Different between variants", page.bullets(unequal_lines(results))),
            *([page.section("Design", page.bullets(design_lines(results.design)))] if results.design else []),
            page.section("Trials", page.trial_table(results)),
            page.section("Environment", page.bullets(setting_lines(results))),
            page.section("The resolved study file", f"<pre>{escape(plain)}</pre>"),
        ],
    )


def _head(results: Results) -> str:
    study = results.study
    candidates = f" and {plural(len(study.candidates), 'tuning candidate')}" if study.tune else ""
    about = (
        f"{plural(len(study.compare), 'variant')} ({listed(list(study.compare))}) compared with "
        f"{plural(len(study.seeds), 'seed')} each{candidates}; "
        f"{study.train.steps:,} steps on `{study.data_name}`; the baseline is {_baseline(study)}."
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
        page.paragraph(findings.unstable_line(results), "warning"),
        page.paragraph(change_line(study, results.design), "warning"),
        page.paragraph(about),
        page.paragraph(f"Hypothesis: {study.hypothesis}" if study.hypothesis else ""),
        page.paragraph(f"Trials: {states}.", "soft"),
    ]
    return "\n".join(line for line in lines if line)


def _baseline(study: Study) -> str:
    if not study.factors:
        return study.baseline
    return f"{study.reference} in each of the {plural(len(study.cells), 'cell')} ({listed(study.cells)})"


def _effects(results: Results) -> str:
    """The section of a factorial study."""
    if not results.effects:
        return ""
    rows = [
        [(cell, "left") for cell in row[:2]] + [(row[2], ""), (row[3], row[3].replace(" ", "-"))]
        for row in interactions.effect_rows(results)
    ]
    note = page.paragraph(interactions.NOTE, "soft")
    return page.section("Effects and interactions", page.table(interactions.HEADS, rows), note)


def _figures(results: Results) -> list[Shown]:
    drawn, final = curves.read_curves(results)
    note = "Lines are smoothed means over seeds; bands range from the lowest to the highest seed."
    finding = findings.curves_finding(results, final)
    shown = [Shown("curves", figures.loss_curves(results, drawn), finding, note)]
    if len(results.rows) > 1:
        note = (
            "Dots with bars are means of the paired differences and their 95 % intervals for all variants "
            "together; ticks are single seeds. " + findings.power_line(results)
        )
        finding = findings.differences_finding(results)
        shown.append(Shown("differences", figures.differences(results), finding, note))
    if results.effects:
        note = "Bars are intervals for all variants and questions together."
        finding = interactions.effects_finding(results)
        shown.append(Shown("interactions", interactions.interaction_plot(results), finding, note))
    if len(results.rows[0].quality) > 1:
        note, finding = "Bars are 95 % t intervals over seeds.", findings.lengths_finding(results)
        shown.append(Shown("lengths", figures.quality_by_length(results), finding, note))
    if any(row.by_position for row in results.rows):
        note = (
            "Means over seeds and equal parts of rows; variation that all variants share is due to the text."
        )
        finding = findings.position_finding(results)
        shown.append(Shown("positions", figures.loss_by_position(results), finding, note))
    for key in figures.tuned_numbers(results):
        note = "Validation loss, mean over seeds; bars are 95 % t intervals; a ring marks the chosen value."
        name, finding = f"tuned-{key.replace('.', '-')}", findings.tuning_finding(results)
        shown.append(Shown(name, figures.loss_by_setting(results, key), finding, note))
    note = "Measured on this machine while other trials were running."
    finding = findings.speed_finding(results)
    shown.append(Shown("speed", figures.quality_by_speed(results), finding, note))
    return shown


def _note(results: Results) -> str:
    return NOTE.format(unit=results.unit)


def _length_note(results: Results) -> str:
    text = results.study.runs[0].trial.trained_by.metric(results.study.data)
    unit = "Bits per byte: nats / ln 2 a byte. " if results.metric == BITS else ""
    chance = "" if results.chance is None else f" Chance level: {results.chance:.4g}."
    lengths = len(results.rows[0].quality)
    family = f" Differences at all {lengths} lengths are one family." if lengths > 1 else ""
    return page.paragraph(f"{unit}Scored: {text}.{chance} Intervals as above.{family}", "soft")

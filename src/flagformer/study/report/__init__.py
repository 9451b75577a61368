"""The report: one HTML file that needs nothing else, made from a run directory at any time.

Read `render` for the order of the page, then `figures.py` and `page.py`; `findings.py` and `fairness.py` put
the numbers into words.
"""

from __future__ import annotations

from html import escape

import yaml

from flagformer.study.report import figures, findings, page
from flagformer.study.report.curves import read_curves
from flagformer.study.report.fairness import equal_lines, setting_lines, unequal_lines
from flagformer.study.results import BITS, Results
from flagformer.study.wording import listed, plural

NOTE = (
    "Loss: held-out nats per scored token, mean ± 95 % t interval over seeds. Differences are paired by "
    "seed; the verdict is that of the "
    "paired t test, Holm-corrected over the variants, at 5 %. FLOPs per token: forward pass at the training "
    "length, two per "
    "multiply-add of matrix products, attention in full. * Measured: tokens/s of training, median over "
    "seeds, with the other trials "
    "running beside it; it differs from run to run, all other columns do not."
)


def render(results: Results) -> str:
    """The page as text."""
    study = results.study
    plain = yaml.safe_dump(study.resolved(), sort_keys=False, allow_unicode=True, width=100)
    return page.page(
        f"Study: {study.name}",
        [
            _head(results),
            page.section("Comparison", page.main_table(results), page.paragraph(NOTE, "soft")),
            page.section("Figures", _figures(results)),
            page.section(
                f"{results.metric.capitalize()} by length", page.length_table(results), _length_note(results)
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
    about = (
        f"{plural(len(study.compare), 'variant')} ({listed(list(study.compare))}) compared with "
        f"{plural(len(study.seeds), 'seed')} each; "
        f"{study.train.steps:,} steps on `{study.data_name}`; the baseline is {study.baseline}."
    )
    states = ", ".join(
        f"{results.count(state)} {state}"
        for state in ("finished", "diverged", "failed", "unfinished", "waiting")
        if results.count(state)
    )
    return "\n".join([
        f"<h1>{escape(study.name)}</h1>",
        page.paragraph(findings.headline(results), "headline"),
        page.paragraph(about),
        page.paragraph(f"Trials: {states}.", "soft"),
    ])  # fmt: skip


def _figures(results: Results) -> str:
    curves, final = read_curves(results)
    shown = [
        page.figure(
            figures.loss_curves(results, curves),
            findings.curves_finding(results, final),
            "Lines are means over seeds, smoothed; bands run from the lowest to the highest seed.",
        )
    ]
    if len(results.rows[0].quality) > 1:
        note = "Bars are 95 % t intervals over seeds."
        shown.append(page.figure(figures.quality_by_length(results), findings.lengths_finding(results), note))
    if len(results.rows) > 1:
        note = (
            "Dots with bars are means with 95 % t intervals of the paired difference; ticks are single seeds."
        )
        shown.append(page.figure(figures.differences(results), findings.differences_finding(results), note))
    note = "Measured on this machine with the other trials running beside it."
    shown.append(page.figure(figures.quality_by_speed(results), findings.speed_finding(results), note))
    return '<div class="figures">\n' + "\n".join(shown) + "\n</div>"


def _length_note(results: Results) -> str:
    text = results.study.data.metric
    unit = "Bits per byte: nats / ln 2. " if results.metric == BITS else ""
    chance = "" if results.chance is None else f" Chance level: {results.chance:.4g}."
    return page.paragraph(f"{unit}Scored is {text}.{chance} Intervals and differences as above.", "soft")

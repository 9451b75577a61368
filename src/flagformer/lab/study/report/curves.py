"""Loss curves from the trials' logs, smoothed and averaged over the seeds of a variant."""

from __future__ import annotations

import numpy as np

from flagformer.lab.study.directory import LOG, trial_directory
from flagformer.lab.study.report.figures import POINTS, Curve, Curves
from flagformer.lab.study.results import Results, TrialState
from flagformer.lab.train.log import read_log


def read_curves(results: Results) -> tuple[Curves, dict[str, float]]:
    """The curve of every variant that has steps, and its mean loss over the last tenth of the steps.

    The finished trials of a variant are used; if there are none, the running ones, cut to the shortest. A
    point is the mean over a window of steps, so that batch noise does not obscure the differences between
    variants.
    """
    curves: Curves = {}
    final: dict[str, float] = {}
    for variant in results.study.compare:
        losses = [_losses(results, trial) for trial in _shown(results, variant)]
        length = min((len(values) for values in losses), default=0)
        if not length:
            continue
        rows = np.array([values[:length] for values in losses])
        final[variant] = float(rows[:, -max(1, length // 10) :].mean())
        curves[variant] = _joined(
            rows, results.study.train_of(variant).batch_size * results.study.data.seq_len
        )
    return curves, final


def _shown(results: Results, variant: str) -> list[TrialState]:
    started = [trial for trial in results.best_trials(variant) if trial.steps]
    return [trial for trial in started if trial.state == "finished"] or started


def _losses(results: Results, trial: TrialState) -> list[float]:
    lines = read_log(trial_directory(results.directory, trial.run.trial.id) / LOG)
    return [line["loss"] for line in lines if line["loss"] is not None]


def _joined(losses: np.ndarray, tokens_a_step: int) -> Curve:
    """Of the losses [seeds, steps], by windows of steps: the tokens at the window's end, the mean over seeds,
    the lowest and the highest seed."""
    width = max(1, losses.shape[1] // POINTS)
    ends = np.arange(width, losses.shape[1] + 1, width)
    seeds = losses[:, : ends[-1]].reshape(len(losses), -1, width).mean(axis=2)  # [seeds, windows]
    return ends * tokens_a_step, seeds.mean(axis=0), seeds.min(axis=0), seeds.max(axis=0)

"""Loss curves from the trials' logs, smoothed and averaged over the seeds of a variant."""

from __future__ import annotations

from flagformer.lab.study.directory import LOG, trial_directory
from flagformer.lab.study.report.figures import POINTS, Curves
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
        losses = [values[:length] for values in losses]
        last = max(1, length // 10)
        final[variant] = sum(sum(values[-last:]) / last for values in losses) / len(losses)
        curves[variant] = _joined(
            losses, results.study.train_of(variant).batch_size * results.study.data.seq_len
        )
    return curves, final


def _shown(results: Results, variant: str) -> list[TrialState]:
    started = [trial for trial in results.best_trials(variant) if trial.steps]
    return [trial for trial in started if trial.state == "finished"] or started


def _losses(results: Results, trial: TrialState) -> list[float]:
    lines = read_log(trial_directory(results.directory, trial.run.trial.id) / LOG)
    return [line["loss"] for line in lines if line["loss"] is not None]


def _joined(
    losses: list[list[float]], tokens_a_step: int
) -> tuple[list[int], list[float], list[float], list[float]]:
    """By windows of steps: tokens at the window's end, mean over seeds, lowest and highest seed."""
    length = len(losses[0])
    width = max(1, length // POINTS)
    ends = range(width, length + 1, width)
    seeds = [[sum(values[end - width : end]) / width for end in ends] for values in losses]
    points = list(zip(*seeds))
    tokens = [end * tokens_a_step for end in ends]
    return (
        tokens,
        [sum(point) / len(point) for point in points],
        [min(point) for point in points],
        [max(point) for point in points],
    )

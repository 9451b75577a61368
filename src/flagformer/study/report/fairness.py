"""What was equal between the variants and what was not, said from the study's own numbers."""

from __future__ import annotations

from collections.abc import Sequence

from flagformer.study.results import Results
from flagformer.study.wording import count, listed, plural, short


def equal_lines(results: Results) -> list[str]:
    """What every variant had alike."""
    study = results.study
    tokens = study.train.steps * study.train.batch_size * study.data.seq_len
    lines = [
        f"Budget: {study.train.steps:,} steps of {study.train.batch_size} sequences of {study.data.seq_len} "
        "tokens, "
        f"{tokens:,} tokens a trial.",
        f"Data: `{study.data_name}`, fingerprint {results.setting.get('data', 'not recorded')}; for one "
        "seed every variant sees the "
        "same batches in the same order.",
        f"Optimizer: AdamW, peak learning rate {study.train.lr:g}, {study.train.decay} decay after "
        f"{study.train.warmup} steps of "
        "warmup; it was not tuned for any variant.",
        f"Test: the same {study.evaluate.split} data for all trials, {study.evaluate.batches} batches at "
        "every length.",
    ]
    if len(_numbers(results, "params")) == 1:
        lines.append(f"Parameters: {count(results.rows[0].params)} in every variant.")
    if len(_numbers(results, "flops_per_token")) == 1:
        lines.append(
            f"Arithmetic: {short(results.rows[0].flops_per_token)} forward FLOPs per token in every variant."
        )
    return lines


def unequal_lines(results: Results) -> list[str]:
    """What differed besides the flags under comparison."""
    lines = []
    for name, label, word in (
        ("params", "Parameters", count),
        ("flops_per_token", "Forward FLOPs per token", short),
    ):
        numbers = sorted(_numbers(results, name))
        if len(numbers) > 1:
            spread = (numbers[-1] / numbers[0] - 1) * 100 if numbers[0] else 0.0
            lines.append(
                f"{label}: from {word(numbers[0])} to {word(numbers[-1])}, {spread:.1f} % apart; not matched."
            )
    done = {row.variant: row.loss.n for row in results.rows}
    if len(set(done.values())) > 1:
        each = listed([f"{variant} {number}" for variant, number in done.items()])
        lines.append(f"Finished seeds: {each} of {len(results.study.seeds)}.")
    for key, label in (
        ("torch", "torch version"),
        ("python", "Python version"),
        ("device", "device"),
        ("threads", "threads a trial"),
    ):
        values = sorted(
            {str(t.result["machine"].get(key)) for t in results.trials if t.result and "machine" in t.result}
        )
        if len(values) > 1:
            lines.append(f"The {label} was not the same in all trials: {listed(values)}.")
    lines += [
        f"{trial.run.label}: {trial.detail}." for trial in results.trials if trial.result and trial.detail
    ]
    return lines or ["Nothing that this study measures, besides the flags under comparison."]


def setting_lines(results: Results) -> list[str]:
    """Machine, versions and cores."""
    setting = results.setting
    machine, packages = setting.get("machine", {}), setting.get("packages", {})
    lines = [
        ", ".join(f"{key} {value}" for key, value in machine.items()),
        ", ".join(f"{key} {value}" for key, value in packages.items()),
    ]
    if "threads" in setting:
        lines.append(
            f"{plural(setting['trials_at_once'], 'trial')} at once, {plural(setting['threads'], 'thread')} "
            "each"
        )
    if setting.get("git_commit"):
        lines.append(f"git commit {setting['git_commit']} of the working directory (+: with changes)")
    return [line for line in lines if line]


def _numbers(results: Results, name: str) -> set[int]:
    values: Sequence[int | None] = [getattr(row, name) for row in results.rows]
    return {value for value in values if value is not None}

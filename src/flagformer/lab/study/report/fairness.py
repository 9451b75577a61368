"""Lists of what was equal for all variants and what differed, from the study's numbers."""

from __future__ import annotations

from collections.abc import Sequence

from flagformer.lab.study.design import Study
from flagformer.lab.study.formatting import count, listed, plural, short
from flagformer.lab.study.results import Results
from flagformer.lab.train.mup.settings import Mup


def equal_lines(results: Results) -> list[str]:
    """What was equal for all variants."""
    study = results.study
    lines = [
        f"Data: `{study.data_name}`, fingerprint {results.setting.get('data', 'not recorded')}; for one "
        "seed every variant is trained on the same batches in the same order.",
        f"Test: the same {study.evaluate.split} data for all trials, {study.evaluate.batches} batches at "
        "every length.",
    ]
    if len({_budget(study, variant) for variant in study.compare}) == 1:
        lines.insert(0, _budget(study, study.baseline))
    if len({_optimizer(study, variant) for variant in study.compare}) == 1:
        lines.append(f"Optimizer: {_optimizer(study, study.baseline)}.")
    if study.tune:
        lines.append(
            f"Tuning: {plural(len(study.candidates) * len(study.seeds), 'run')} for every variant, "
            f"{plural(len(study.candidates), 'candidate')} with {plural(len(study.seeds), 'seed')} "
            "each; the candidate with the lowest final validation loss is compared on the test split."
        )
    if len(_numbers(results, "params")) == 1:
        lines.append(f"Parameters: {count(results.rows[0].params)} in every variant.")
    if len(_numbers(results, "flops_per_token")) == 1:
        lines.append(
            f"Arithmetic: {short(results.rows[0].flops_per_token)} forward FLOPs per token in every variant."
        )
    return lines + _matched_lines(results)


def unequal_lines(results: Results) -> list[str]:
    """What differed between variants, in addition to the compared flags."""
    study = results.study
    lines = _unequal_numbers(results)
    if len({_budget(study, variant) for variant in study.compare}) > 1:
        lines += [f"{variant}: {_budget(study, variant)}" for variant in study.compare]
    if len({_optimizer(study, variant) for variant in study.compare}) > 1:
        lines += [f"{variant}: {_optimizer(study, variant)}." for variant in study.compare]
    if not study.tune:
        lines.append(
            "No hyperparameter was tuned: the learning rate may suit one variant better than another "
            "(`tune: {lr: [...]}` tunes it)."
        )
    lines += [f"{row.variant}: {row.graft}." for row in results.rows if row.graft]
    copies = [variant for variant, number in study.copies.items() if number]
    if copies:
        lines.append(
            f"{listed(copies)} {'is a copy' if len(copies) == 1 else 'are copies'} of an earlier "
            "variant with other initial weights: the difference is due to chance."
        )
    done = {row.variant: row.loss.n for row in results.rows}
    if len(set(done.values())) > 1:
        each = listed([f"{variant} {number}" for variant, number in done.items()])
        lines.append(f"Finished seeds: {each} of {len(study.seeds)}.")
    lines += _machine_lines(results)
    lines += [
        f"{trial.run.label}: {trial.detail}." for trial in results.trials if trial.result and trial.detail
    ]
    return lines or ["Nothing that this study measures, except the compared flags."]


def _budget(study: Study, variant: str) -> str:
    train = study.train_of(variant)
    return (
        f"Budget: {train.steps:,} steps of {train.batch_size} sequences of {study.data.seq_len} tokens, "
        f"{study.tokens_of(variant):,} tokens per trial{_segments(train.segment)}."
    )


def _segments(segment: int | None) -> str:
    return f", in segments of {plural(segment, 'token')}" if segment else ""


def _optimizer(study: Study, variant: str) -> str:
    train = study.train_of(variant)
    rate = "tuned" if "train.lr" in study.tune else f"{train.lr:g}"
    decay = f"{train.decay} decay" if train.optimizer.decays_rate else "no decay"
    text = f"{train.optimizer.title}, peak learning rate {rate}, {decay} after {train.warmup} steps of warmup"
    more = [
        name
        for name in ("groups", "label_smoothing", "z_loss", "ema", "compile", "mup")
        if getattr(train, name)
    ]
    return ", ".join([text, *(f"`{name}` {_setting(getattr(train, name))}" for name in more)])


def _setting(value: object) -> str:
    """A setting of training in a sentence."""
    if isinstance(value, dict):
        return ", ".join(f"{role} {own.model_dump(exclude_none=True)}" for role, own in value.items())
    if isinstance(value, Mup):
        sizes = listed([f"{name} {size}" for name, size in value.base.items()])
        return f"relative to a base model of {sizes}"
    return "on" if value is True else f"{value:g}"


def _matched_lines(results: Results) -> list[str]:
    """The quantity that was matched, and the knob that was changed for it."""
    match, matched = results.study.match, results.setting.get("matched", {})
    if match.what not in ("params", "flops"):
        return []
    unit = "parameters" if match.what == "params" else "FLOPs"
    changed = [f"{variant} from {one['before']:g} to {one['after']:g}" for variant, one in matched.items()]
    cell = " in the same cell" if results.study.factors else ""
    by = f"by `{match.by}`: {listed(changed)}" if changed else "without any change"
    return [f"Matched: {unit} within {match.within:.1%} of {results.study.reference}{cell}, {by}."]


def _unequal_numbers(results: Results) -> list[str]:
    lines = []
    for name, label, word in (
        ("params", "Parameters", count),
        ("flops_per_token", "Forward FLOPs per token", short),
    ):
        numbers = sorted(_numbers(results, name))
        if len(numbers) > 1:
            difference = (numbers[-1] / numbers[0] - 1) * 100 if numbers[0] else 0.0
            within = results.study.match.what == {"params": "params"}.get(name, "flops")
            state = "matched" if within else "not matched"
            lines.append(
                f"{label}: from {word(numbers[0])} to {word(numbers[-1])}, a difference of "
                f"{difference:.1f} %; {state}."
            )
    return lines


def _machine_lines(results: Results) -> list[str]:
    lines = []
    for key, label in (
        ("torch", "torch version"),
        ("python", "Python version"),
        ("device", "device"),
        ("threads", "number of threads per trial"),
    ):
        values = sorted(
            {str(t.result["machine"].get(key)) for t in results.trials if t.result and "machine" in t.result}
        )
        if len(values) > 1:
            lines.append(f"The {label} was not the same in all trials: {listed(values)}.")
    return lines


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
            f"{plural(setting['trials_at_once'], 'trial')} in parallel, "
            f"{plural(setting['threads'], 'thread')} each"
        )
    if setting.get("git_commit"):
        lines.append(
            f"git commit {setting['git_commit']} of the working directory (+: with uncommitted changes)"
        )
    return [line for line in lines if line]


def _numbers(results: Results, name: str) -> set[int]:
    values: Sequence[int | None] = [getattr(row, name) for row in results.rows]
    return {value for value in values if value is not None}

"""The models that a path on the command line names: a saved model, a file of flags, a study's variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flagformer.flags import FlagError

if TYPE_CHECKING:
    from flagformer.lab.study.source import Route, Source
    from flagformer.lab.train.config import Trial

DEFAULTS = {"num_tokens": 256, "max_seq_len": 256}  # bytes, for files that do not set them
AUDITED = "a file of flags, a training or study file, or the directory of a saved model"
STUDY_KEYS = frozenset({"base", "compare", "data", "train"})


class Named(NamedTuple):
    """A model that a path names: its build function, and the `train.precision` of its training."""

    build: Callable[[], Any]
    precision: str = "fp32"


def named_models(path: Path, overrides: list[str], allow: Sequence[str] = ()) -> dict[str, Named]:
    """Each model by its name; the flags of all of them are checked before the first is built.

    The variants of a study are those that `study run` would train: made equal as its `match` says.

    Args:
        path: a directory with a saved model (or with one in `model/`, as training leaves it), a YAML file of
            flat flags, a training file with `base:`, or a study with `base:` and `compare:`.
        overrides: `key=value` changes to the file, with the file's own names.
        allow: modules from which the flags of a saved model may name classes.

    Raises:
        ValueError: every mistake of the file with its line.
        OSError: what the file system says.
    """
    if path.is_dir():
        return _saved(path, overrides, allow)
    import flagformer
    from flagformer.lab.study.overrides import apply_overrides
    from flagformer.lab.study.source import read_source
    from flagformer.models.build import ROUTING, WHOLE

    source = read_source(path, AUDITED)
    apply_overrides(source, overrides)
    if {"compare", "grid"} & set(source.data):
        return _variants(path, overrides)
    if STUDY_KEYS & set(source.data):
        from flagformer.lab.cli.runfile import load_run

        _, trial = load_run(path, overrides)
        _check(source, ("base",), trial.model_flags)
        return {path.stem: _of_trial(trial)}
    whole = source.data.get("model") in (*WHOLE, *ROUTING)
    flags = source.data if whole else {**DEFAULTS, **source.data}
    _check(source, (), flags)
    return {path.stem: Named(lambda: flagformer.build(flags))}


def _saved(path: Path, overrides: list[str], allow: Sequence[str]) -> dict[str, Named]:
    import flagformer

    if overrides:
        text = f"`{overrides[0]}` cannot change the saved model in {path}; give a file of flags"
        raise ValueError(text)
    if (path / "trials").is_dir():
        raise ValueError(f"{path} is the directory of a study; give its YAML file, or one of {path}/trials/")
    inner = path / "model"
    folder = inner if inner.is_dir() and not (path / "flags.json").exists() else path
    build = partial(flagformer.load, folder, allow=allow)
    return {path.name or str(path): Named(build, _precision_of(path))}


def _precision_of(run: Path) -> str:
    """The precision of the trial in a run directory; fp32 without a trial."""
    from flagformer.lab.train.result import read_settings

    path = run / "trial.json"
    return str(read_settings(path)["train"].get("precision", "fp32")) if path.exists() else "fp32"


def _variants(path: Path, overrides: list[str]) -> dict[str, Named]:
    from flagformer.lab.study.costs import check_variants
    from flagformer.lab.study.file import load_study
    from flagformer.lab.study.match import match_budget

    study, source = load_study(path, overrides)
    study, _, _ = match_budget(study, source, check_variants(study, source))
    first, candidate = study.seeds[0], study.candidates[0]
    return {name: _of_trial(study.trial(name, first, candidate)) for name in study.compare}


def _of_trial(trial: Trial) -> Named:
    import flagformer

    flags = trial.model_flags
    return Named(lambda: flagformer.build(flags), trial.train.precision)


def _check(source: Source, route: Route, flags: dict[str, Any]) -> None:
    """Raise errors for invalid flags, with their lines, without building a model."""
    import flagformer
    from flagformer.lab.study.config_errors import StudyFileError

    try:
        flagformer.check(flags)
    except FlagError as error:
        mistakes = [source.mistake((*route, finding.flag), finding.message) for finding in error.findings]
        raise StudyFileError(mistakes) from None

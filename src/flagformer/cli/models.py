"""The models that a path on the command line names: a saved model, a file of flags, a study's variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagformer.flags import FlagError

if TYPE_CHECKING:
    from flagformer.study.source import Route, Source

Build = Callable[[], Any]
USUAL = {"num_tokens": 256, "max_seq_len": 256}  # bytes, where a file of flags says nothing
STUDY_KEYS = frozenset({"base", "compare", "data", "train"})


def named_models(path: Path, overrides: list[str]) -> dict[str, Build]:
    """What builds each model, by its name; the flags of all of them are checked before the first is built.

    Args:
        path: a directory with a saved model (or with one in `model/`, as training leaves it), a YAML file of
            flat flags, a training file with `base:`, or a study with `base:` and `compare:`.
        overrides: `key=value` changes to the file, with the file's own names.

    Raises:
        ValueError: every mistake of the file with its line.
        OSError: what the file system says.
    """
    if path.is_dir():
        return _saved(path, overrides)
    from flagformer.study.overrides import apply_overrides
    from flagformer.study.source import read_source

    source = read_source(path)
    apply_overrides(source, overrides)
    if "compare" in source.data:
        return _variants(source)
    if STUDY_KEYS & set(source.data):
        from flagformer.cli.runfile import load_run

        _, trial = load_run(path, overrides)
        return {path.stem: _checked(source, ("base",), trial.model_flags)}
    return {path.stem: _checked(source, (), {**USUAL, **source.data})}


def _saved(path: Path, overrides: list[str]) -> dict[str, Build]:
    import flagformer

    if overrides:
        text = f"`{overrides[0]}` cannot change the saved model in {path}; give a file of flags"
        raise ValueError(text)
    if (path / "trials").is_dir():
        raise ValueError(f"{path} is the directory of a study; give its YAML file, or one of {path}/trials/")
    inner = path / "model"
    folder = inner if inner.is_dir() and not (path / "flags.json").exists() else path
    return {path.name or str(path): lambda: flagformer.load(folder)}


def _variants(source: Source) -> dict[str, Build]:
    from flagformer.study.costs import check_variants
    from flagformer.study.file import resolve_study

    study = resolve_study(source)
    check_variants(study, source)
    flags = {name: study.trial(name, study.seeds[0]).model_flags for name in study.compare}
    return {name: _building(found) for name, found in flags.items()}


def _checked(source: Source, route: Route, flags: dict[str, Any]) -> Build:
    """Refuses flags that cannot be built, at their lines, without building anything."""
    import flagformer
    from flagformer.study.mistakes import StudyFileError

    try:
        flagformer.check(flags)
    except FlagError as error:
        mistakes = [source.mistake((*route, finding.flag), finding.message) for finding in error.findings]
        raise StudyFileError(mistakes) from None
    return _building(flags)


def _building(flags: dict[str, Any]) -> Build:
    import flagformer

    return lambda: flagformer.build(flags)

"""The file of `flagformer train`: a study file without the comparison."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flagformer.flags import FlagError
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.objectives.catalogue import ObjectiveConfig
from flagformer.lab.study.blocks import check_block
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.file import StudyFile, long_form, plain_name
from flagformer.lab.study.flags import flag_mistakes, message_of
from flagformer.lab.study.overrides import apply_overrides
from flagformer.lab.study.source import TRAINING, read_source
from flagformer.lab.study.starting import fill_base
from flagformer.lab.train.config import SEED_LIMIT, EvaluateConfig, TrainConfig, Trial
from flagformer.lab.train.process_group import Parallel

BLOCKS: dict[str, Any] = {
    "data": DataConfig, "objective": ObjectiveConfig, "train": TrainConfig, "evaluate": EvaluateConfig,
}  # fmt: skip


class RunFile(BaseModel):
    """The keys of a training file: a study file without the comparison. Blocks are validated separately."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    base: Any
    data: Any = None
    objective: Any = None
    train: Any = None
    evaluate: Any = None
    seed: int = Field(default=0, ge=0, lt=SEED_LIMIT)
    threads: int | None = Field(default=None, ge=1, le=4096, description="Threads of each process.")
    parallel: Parallel = Field(
        default="ddp",
        description="Parallel training with torchrun: ddp replicates the model, fsdp shards it.",
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        return None if name is None else plain_name(name)


def load_run(file: Path, overrides: list[str]) -> tuple[RunFile, Trial]:
    """Read a training file and apply `key=value` overrides; StudyFileError with all errors and their lines.

    What cannot be trained (flags that exclude each other, a text too short) is found here too.
    """
    source = read_source(file, TRAINING)
    apply_overrides(source, overrides)
    given = source.data
    study_keys = [key for key in StudyFile.model_fields if key in given and key not in RunFile.model_fields]
    if study_keys:
        text = f"`{study_keys[0]}` compares several runs; use `flagformer study run {file}`, or leave it out"
        raise StudyFileError([source.mistake((study_keys[0],), text)])
    run, mistakes = check_block(source, (), RunFile, given)
    mistakes += fill_base(source)
    blocks: dict[str, Any] = {}
    for key, kind in BLOCKS.items():
        if given.get(key) is not None:
            blocks[key], found = check_block(source, (key,), kind, long_form(key, given[key]))
            mistakes += found
    if "base" in given and not isinstance(given["base"], dict):
        mistakes.append(source.mistake(("base",), "`base` must be a mapping of flags, such as `{dim: 128}`"))
    if mistakes:
        raise StudyFileError([*mistakes, *flag_mistakes(source)])
    trial = Trial(flags=given["base"], seed=run.seed, **blocks)
    try:
        trial.check()
    except FlagError as error:
        raise StudyFileError(
            source.mistake(("base", f.flag), message_of(f)) for f in error.findings
        ) from error
    except ValueError as error:
        raise StudyFileError([source.mistake_of(str(error))]) from error
    return run, trial

"""Compare a published model, as this library loads it, with transformers, and certify the result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import flagformer
from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.files import CONFIG, read_json
from flagformer.interop.hugging_face.our_answers import our_answer
from flagformer.interop.hugging_face.own import MODEL_TYPE
from flagformer.interop.hugging_face.parity import Answer, ParityCheck, Probe, compare, probes_of
from flagformer.interop.hugging_face.read import OpenDirectory
from flagformer.interop.hugging_face.their_answers import need_transformers, quiet, their_answer, their_model
from flagformer.interop.load import is_published, load, open_published

KINDS = ("decoder", "encoder", "classifier", "xtransformer", "vit")
SCHEMA = 2
WHOLE = "ForConditionalGeneration"  # the end of the class's name of a checkpoint with several parts


@dataclass(frozen=True)
class Certificate:
    """The result of `verify`.

    Attributes:
        directory: its name.
        model_type: of its config.
        architecture: the class of transformers.
        flags: those of the model here.
        checks: one for each kind of input.
        tolerance: the largest difference of outputs that passes, in their standard deviations.
        seed: of the inputs.
        versions: of this library, torch and transformers.
        files: name -> SHA-256 of the config and the weights.
    """

    directory: str
    model_type: str
    architecture: str
    flags: Mapping[str, Any]
    checks: tuple[ParityCheck, ...]
    tolerance: float
    seed: int
    versions: Mapping[str, str]
    files: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """All fields, `schema`, `dtype` and `passed`, for JSON."""
        return {"schema": SCHEMA, "passed": self.passed, "dtype": "float32", **asdict(self)}


def verify(
    directory: str | Path,
    *,
    seq_len: int = 24,
    new_tokens: int = 32,
    seed: int = 0,
    tolerance: float = 1e-4,
    fp64: bool = True,
) -> Certificate:
    """Compare the model of a directory of `save_pretrained` with that of transformers, both in fp32 on CPU.

    Inputs are random: texts of whole and of padded rows for decoders (on the left) and encoder-decoders, each
    with greedy tokens, cached and not; texts of whole and of padded rows (on the right) for encoders; images.
    One of the models is in memory at a time. No code of the directory is executed.

    The model here also runs in fp64. Where `gap` is large, both fp32 runs are about as far from it if weights
    amplify rounding; if only transformers is far from it, the models differ.

    Args:
        seq_len: tokens of a text, or fewer where the model reads fewer; a window longer than that is not
            tested.
        new_tokens: greedy tokens.
        tolerance: the largest difference of logits that passes, in their standard deviations.
        fp64: whether the model here runs in fp64 too, which takes twice the memory of fp32.

    Raises:
        ImportError: without transformers.
        ValueError: for a directory that is not of transformers.
        ConversionError: for one that cannot be loaded.
    """
    path = Path(directory)
    _refuse_other(path)
    transformers = need_transformers()
    opened = open_published(path)
    family, flags = opened.family, opened.model.flags
    if family.kind not in KINDS:
        raise ConversionError(
            [f"models of kind `{family.kind}` are not compared, but {', '.join(KINDS)}"], str(path)
        )
    sizes = (seq_len, new_tokens)
    probes = probes_of(family.kind, not flags.get("return_only_embed"), flags, opened.config, sizes, seed)
    count = min(new_tokens, flags.get("dec_max_seq_len", new_tokens))
    answers = _answers(path, opened, probes, count, fp64)
    checks = tuple(compare(*one, tolerance) for one in zip(probes, *answers, strict=True))
    versions = {module.__name__: module.__version__ for module in (flagformer, torch, transformers)}
    files = {name: _digest(path / name) for name in (CONFIG, *sorted(set(opened.files.where.values())))}
    name, cls = path.resolve().name, _architecture(opened)
    return Certificate(name, family.model_type, cls, flags, checks, tolerance, seed, versions, files)


def _refuse_other(path: Path) -> None:
    """Raise ValueError for a directory whose model is not of transformers."""
    if not is_published(path):
        raise ValueError(
            f"only a directory of `save_pretrained` can be compared with transformers, but {path} has no "
            f"{CONFIG}, or is of `model.save`: `flagformer.interop.hugging_face.export` writes one"
        )
    if read_json(path / CONFIG).get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{path} is a FlagformerForCausalLM, whose model in transformers is that of this library: there "
            "is nothing to compare"
        )


def _answers(
    path: Path, opened: OpenDirectory, probes: list[Probe], count: int, fp64: bool
) -> tuple[Sequence[Answer], Sequence[Answer], Sequence[Answer | None]]:
    """The answers of transformers and of this library in fp32, and of this library in fp64, or None; one of
    the models is in memory at a time."""
    family = opened.family
    with quiet(), torch.no_grad():
        theirs = their_model(path, _architecture(opened))
        wanted = [their_answer(theirs, family.kind, probe, count) for probe in probes]
        del theirs
        got = _ours(path, opened, probes, wanted, torch.float32)
        exact = _ours(path, opened, probes, wanted, torch.float64) if fp64 else [None] * len(probes)
    return wanted, got, exact


def _ours(
    path: Path, opened: OpenDirectory, probes: list[Probe], wanted: list[Answer], dtype: torch.dtype
) -> list[Answer]:
    ours = load(path, dtype=dtype).eval()
    return [
        our_answer(ours, opened.family.model_type, probe, want.tokens)
        for probe, want in zip(probes, wanted, strict=True)
    ]


def _architecture(opened: OpenDirectory) -> str:
    """The class of the config, if the table reads it; that of the table for bare models. Of a checkpoint with
    several parts it is the class of the whole, which reads texts alone too."""
    family, said = opened.family, opened.architectures
    known = (family.architecture, *family.also, *(name for name in said if name.endswith(WHOLE)))
    return next((name for name in said if name in known), family.architecture)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

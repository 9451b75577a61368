"""The model that a path names, without its weights: flags, and the headers of files."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from flagformer.interop.hugging_face.files import WeightFiles


PAIRS = ("xtransformer", "memformer")  # most of their flags begin with `enc_` or `dec_`


class FileSizes(NamedTuple):
    """The files of weights.

    Attributes:
        num_files: how many there are.
        bytes: their size together.
        numbers: dtype, as safetensors writes it ("BF16") -> how many numbers the files hold.
    """

    num_files: int
    bytes: int
    numbers: dict[str, int]


class Described(NamedTuple):
    """A model on torch's meta device.

    Attributes:
        what: a description of the path.
        model: the model, in the dtype of most numbers of the files.
        files: None for a file of flags.
        dropped: names of tensors without a part in the function.
    """

    what: str
    model: Any
    files: FileSizes | None = None
    dropped: tuple[str, ...] = ()

    @property
    def flags(self) -> dict[str, Any]:
        """The flags of the model that differ from their defaults; one value where all layers have it."""
        from flagformer.interop.hugging_face.settings import collapse

        flags = self.model.flags
        given = {
            name: collapse(value) if isinstance(value, list | tuple) else value
            for name, value in flags.items()
        }
        return {name: value for name, value in given.items() if not _is_default(name, value, flags)}


def described(path: Path, allow: Sequence[str] = ()) -> Described:
    """The model of a directory or of a YAML file of flags. Of weights, only headers are read.

    Args:
        allow: modules from which the flags may name classes.

    Raises:
        ValueError: names the file that is missing or wrong, the family without a table, or all fields and
            tensors without a place.
    """
    from flagformer.interop.hugging_face.files import CONFIG, read_json
    from flagformer.interop.hugging_face.own import MODEL_TYPE, own_flags
    from flagformer.interop.load import is_published, open_published

    if path.is_file():
        return _of_file(path, allow)
    folder = model_folder(path)
    if is_published(folder):
        config = read_json(folder / CONFIG)
        if config.get("model_type") == MODEL_TYPE:
            return _of_flags("a FlagformerForCausalLM", folder, own_flags(config), allow)
        opened = open_published(folder)
        cls = (opened.config.get("architectures") or [opened.family.architecture])[0]
        what = f"a published model, `{opened.family.model_type}` ({cls})"
        sizes = _sizes(opened.files)
        return Described(what, _in_dtype(opened.model, sizes), sizes, opened.dropped)
    return _of_saved(folder, allow)


def model_folder(path: Path) -> Path:
    """The directory of the model in a directory or a run; ValueError where there is none."""
    from flagformer.flags.others import recognise_directory

    if not path.is_dir():
        why = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"the directory of a model must be given, but {path} {why}")
    if (path / "trials").is_dir():
        raise ValueError(f"{path} is the directory of a study; give one of {path}/trials/")
    for folder in (path, path / "model"):
        if any((folder / name).is_file() for name in ("config.json", "flags.json")):
            return folder
    if (path / "model.safetensors").is_file():
        return path  # it may hold the flags
    other = recognise_directory(path)
    found = f"is {other.what}" if other else "has none of these files"
    raise ValueError(
        "a model's directory has `config.json`, from `save_pretrained` of transformers, or `flags.json`, "
        f"from `model.save`, but {path} {found}"
    )


def default_of(name: str, flags: dict[str, Any]) -> str:
    """The default of a flag as typed; empty for `model`."""
    from flagformer.flags import CATALOGUE
    from flagformer.flags.names import canonical
    from flagformer.lab.cli.flag_words import standard
    from flagformer.models.build import WHOLE
    from flagformer.wrappers.transformer import TransformerWrapper

    if name == "model":
        return ""
    kind = str(flags.get("model"))
    bare = name.removeprefix("enc_").removeprefix("dec_") if kind in PAIRS else name
    for cls, word in ((WHOLE.get(kind), name), (TransformerWrapper, bare)):
        given = None if cls is None else inspect.signature(cls).parameters.get(word)
        if given is not None and given.kind is not inspect.Parameter.VAR_KEYWORD:
            return "required" if given.default is inspect.Parameter.empty else repr(given.default)
    known = canonical(bare, CATALOGUE)
    return standard(known) if known in CATALOGUE.names() else ""


def equal(first: Any, second: Any) -> bool:
    """Whether two values of a flag are equal; True is not 1."""
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)


def _is_default(name: str, value: Any, flags: dict[str, Any]) -> bool:
    if value is None:
        return True
    try:
        return equal(value, ast.literal_eval(default_of(name, flags)))
    except (SyntaxError, ValueError):  # a required flag, or one whose default depends on others
        return False


def _of_file(path: Path, allow: Sequence[str]) -> Described:
    import torch

    from flagformer.lab.cli.models import named_models

    models = named_models(path, [], allow)
    if len(models) > 1:
        raise ValueError(
            f"a file of flags must describe one model, but {path} is a study with {len(models)} variants"
        )
    [named] = models.values()
    with torch.device("meta"):
        return Described("a file of flags", named.build())


def _of_saved(folder: Path, allow: Sequence[str]) -> Described:
    import flagformer
    from flagformer.flags import allowed_modules
    from flagformer.storage.models import saved_flags

    with allowed_modules(allow):
        flags = saved_flags(folder, flagformer.build)
    return _of_flags("a model of `model.save`", folder, flags, allow)


def _of_flags(what: str, folder: Path, flags: dict[str, Any], allow: Sequence[str]) -> Described:
    import torch

    import flagformer
    from flagformer.flags import allowed_modules
    from flagformer.interop.hugging_face.files import WeightFiles

    with allowed_modules(allow), torch.device("meta"):
        model = flagformer.build(flags)
    sizes = _sizes(WeightFiles(folder))
    return Described(what, _in_dtype(model, sizes), sizes)


def _sizes(files: WeightFiles) -> FileSizes:
    import math

    names = set(files.where.values())
    numbers: Counter[str] = Counter()
    for name, shape in files.shapes.items():
        numbers[files.dtypes[name]] += math.prod(shape)
    return FileSizes(len(names), sum((files.path / name).stat().st_size for name in names), dict(numbers))


def _in_dtype(model: Any, sizes: FileSizes) -> Any:
    """The model in the dtype of most numbers of its files, for the size of its decode state."""
    from flagformer.interop.hugging_face.files import DTYPES

    floats = {dtype: count for dtype, count in sizes.numbers.items() if dtype in DTYPES}
    return model.to(DTYPES[max(floats, key=lambda dtype: floats[dtype])]) if floats else model

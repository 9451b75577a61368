"""Files of tensors by name: safetensors with metadata; no code in them is executed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

# The library of safetensors for headers: torch maps files copy-on-write, which Linux refuses for files larger
# than the memory.
HEADERS = "np" if find_spec("numpy") else "pt"
METADATA = "flagformer"  # one key: safetensors writes several in an order that differs between two writes


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name as a safetensors file with metadata, first to a temporary name."""
    need_safetensors()
    from safetensors.torch import save

    header = {METADATA: json.dumps(metadata, sort_keys=True)} if metadata else None
    replace_file(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, header))


def load_tensors(
    path: Path,
    device: torch.device | str = "cpu",
    writer: str = "`save(directory)` of the model, or of its stream,",
) -> dict[str, Tensor]:
    """Read a file of `save_tensors`; `writer` is the call that writes it.

    Raises:
        ValueError: names a file that is missing or unreadable.
    """
    need_safetensors()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} does not exist; {writer} writes it")
    try:
        return load_file(path, str(device))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); it is truncated or not a safetensors file"
        ) from None


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file of `save_tensors`; empty if there is none or the file cannot be read."""
    need_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, HEADERS) as file:
            texts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):  # ValueError: invalid JSON
        return {}
    return (
        {name: text for name, text in texts.items() if isinstance(text, str)}
        if isinstance(texts, dict)
        else {}
    )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of `path` atomically; after an OSError it is unchanged."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def need_safetensors() -> None:
    try:
        import safetensors.torch  # noqa: F401
    except ImportError:
        raise ImportError(
            "models are saved and loaded by safetensors, which is not installed: "
            "`pip install safetensors`, or `pip install 'flagformer[study]'`"
        ) from None

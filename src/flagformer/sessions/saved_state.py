"""Save a decode state to one file, and continue it in another process.

The file holds the tensors of the state and digests of the model's flags and weights, and of its own content,
so that a state of another model and a damaged file are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.flow import DecodeState, InterleavedDecodeState, StateRecord
from flagformer.ops.home import home_of
from flagformer.ops.sharded import as_forward, is_sharded
from flagformer.storage.tensors import digest_of, load_metadata, load_tensors, save_tensors

State = DecodeState | InterleavedDecodeState
FORMAT = "1"
SAMPLES = 16  # numbers of each parameter in the digest of the weights: a training step changes most of them
DAMAGED = "it is damaged, or another program wrote it: save the state again by `model.save_state`"


class StateFiles:
    """Methods of models that save decode states."""

    @property
    def _of_states(self) -> Any:
        """The model whose `init_state` makes the states."""
        return self

    def save_state(self, state: State, path: str | Path) -> None:
        """Write a decode state to one safetensors file, with digests of the model's flags and weights.

        Args:
            state: a result of `init_state` of this model, after any number of tokens.
            path: the file; an earlier one is replaced.

        Raises:
            ValueError: for a state of another model.
        """
        save_state(self._of_states, state, Path(path))

    def load_state(self, path: str | Path) -> State:
        """Read a file of `save_state`, in any process: the next tokens give equal logits, bit by bit.

        Raises:
            ValueError: for a file that is missing or damaged, or was saved by a model with other flags,
                weights or precision.
        """
        return load_state(self._of_states, Path(path))


class InnerStates(StateFiles):
    """Methods of wrappers whose decode states are those of a model in them, `_of_states`."""

    def init_state(
        self, batch: int, length: int, *, window: int | None = None, seq_start_pos: Tensor | None = None
    ) -> State:
        """Return a preallocated decode state of the model that reads tokens step by step: the model itself,
        or the decoder of an encoder-decoder (`model.decoder.net`). As `TransformerWrapper.init_state`."""
        state: State = self._of_states.init_state(batch, length, window=window, seq_start_pos=seq_start_pos)
        return state


@as_forward
def save_state(model: Any, state: State, path: Path) -> None:
    """Write a state of `model.init_state`, with the digests of the model.

    Raises:
        ValueError: for a state of another model.
    """
    if not isinstance(state, State):
        raise ValueError(f"`state` must come from `init_state`, but is a {type(state).__name__}")
    if state.signature != model.attn_layers.cache_signature:
        raise ValueError("`state` must come from `init_state` of this model, but other layers made it")
    tensors, text = packed(state)
    metadata = {
        "state format": FORMAT, "state": text, "flags": flags_digest(model), "weights": weights_sample(model)
    }  # fmt: skip
    save_tensors(tensors, path, {**metadata, "content": _content_digest(metadata, tensors)})


def load_state(model: Any, path: Path) -> State:
    """Read a file of `save_state` into a new state of the model.

    Raises:
        ValueError: for a file that is missing, damaged or of another model.
    """
    tensors, saved = load_tensors(path, writer="`model.save_state(state, path)`"), load_metadata(path)
    if saved.get("state format") != FORMAT:
        found = saved.get("state format")
        kind = "no decode state" if found is None else f"a decode state of format {found}"
        raise ValueError(f"{path} holds {kind}, but `load_state` reads files of `model.save_state`")
    if saved.pop("content", "") != _content_digest(saved, tensors):
        raise ValueError(f"{path} does not hold the content that was saved: {DAMAGED}")
    for name, digest in (("flags", flags_digest(model)), ("weights", weights_sample(model))):
        if saved[name] and digest and saved[name] != digest:
            raise ValueError(
                f"{path} must be of this model, but was saved by one with other {name}: load that model, or"
                " read the tokens again by `init_state`"
            )
    return unpacked(model, tensors, saved["state"], path)


def packed(state: State) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state, and its sizes and numbers in JSON."""
    record = state.record()
    sizes = {"batch": state.batch, "length": state.capacity, "window": state.window}
    if isinstance(state, InterleavedDecodeState):
        sizes["num_prepend_embeds"] = state.num_prepended_capacity
    text = json.dumps({"sizes": sizes, "numbers": record.numbers}, sort_keys=True)
    return {name: _owned(tensor) for name, tensor in record.tensors.items()}, text


def unpacked(model: Any, tensors: Mapping[str, Tensor], text: str, path: Path) -> State:
    """The state of a result of `packed` in the file `path`; ValueError for tensors of another precision."""
    given, device = json.loads(text), home_of(model)[0]
    record = StateRecord(aligned(tensors, device), given["numbers"])
    state: State = model.init_state(**given["sizes"], seq_start_pos=_row_starts(record.tensors))
    _check(path, state, record)
    state.restore(record)
    return state


def aligned(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies of a file's tensors, which begin at any byte, where operators may round in another order."""
    return {name: one.to(device, copy=True) for name, one in tensors.items()}


def flags_digest(model: Any) -> str:
    """The digest of the flags, in which a class stands by its import path."""
    return hashlib.sha256(json.dumps(model.flags, sort_keys=True, default=_named).encode()).hexdigest()


def weights_sample(model: nn.Module) -> str:
    """The digest of some numbers of each parameter and buffer, with its name and shape; empty for a sharded
    model."""
    if is_sharded(model):
        return ""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if type(tensor) is not Tensor:  # quantised weights, and values that are no tensors
            continue
        flat = tensor.detach().flatten()
        count = min(SAMPLES, len(flat))
        index = torch.arange(count, device=flat.device) * (len(flat) - 1) // max(count - 1, 1)
        digest.update(f"{name} {digest_of({'': flat[index]})} {list(tensor.shape)}\n".encode())
    return digest.hexdigest()


def _content_digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    text = f"{json.dumps(metadata, sort_keys=True)} {digest_of(tensors)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _row_starts(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The left padding in tokens: of an interleaved state its own, not that of the state of its layers."""
    interleaved = any(name.startswith("tokens ") for name in tensors)
    return tensors.get("tokens row_starts" if interleaved else "row_starts")


def _check(path: Path, state: State, record: StateRecord) -> None:
    """ValueError for tensors that the caches of this model do not have."""
    inner = state.inner if isinstance(state, InterleavedDecodeState) else state
    for name, declared in inner.declared(record.numbers["length"]).items():
        saved = record.tensors.get(name)
        if saved is None or saved.shape != declared.shape or saved.dtype != declared.dtype:
            shown = "nothing" if saved is None else f"{saved.dtype} {list(saved.shape)}"
            raise ValueError(
                f"{path} must hold {declared.dtype} {list(declared.shape)} as {name!r}, but holds {shown}:"
                " load it in the precision in which it was saved (dtype of the model, autocast)"
            )


def _owned(tensor: Tensor) -> Tensor:
    """The tensor on its own memory, as safetensors needs it."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _named(value: Any) -> str:
    cls = value if isinstance(value, type) else getattr(value, "cls", type(value))
    return f"{cls.__module__}:{cls.__qualname__}"

"""Convert prompts of any accepted form to left-padded ids, with each row's last token in the last column."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PromptLike = Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Prompts:
    """Left-padded prompts.

    ids: long [B, T]; starts: long [B], the column of each row's first token, or None if no row is padded;
    batched: False for a single prompt without a batch dimension.
    """

    ids: Tensor
    starts: Tensor | None
    batched: bool


def read_prompts(
    prompts: PromptLike,
    prompt_lens: Tensor | Sequence[int] | None,
    num_tokens: int,
    pad_value: int = 0,
    device: torch.device | str = "cpu",
) -> Prompts:
    """Check prompts and pad them on the left.

    Args:
        prompts: ids as a tensor [B, T] or [T], a list of 1-d tensors or of lists of ints (of any
            lengths), or one list of ints.
        prompt_lens: [B] tokens per row of a right-padded tensor; later ids are ignored.
        num_tokens: size of the vocabulary.
        pad_value: id written before shorter rows.
        device: device of the result.

    Raises ValueError, with the row, for empty prompts, ids out of range, and values that are not integers.
    """
    rows, batched = _split(prompts, prompt_lens)
    for name, row in rows.items():
        _check_row(name, row)
    lengths = [len(row) for row in rows.values()]
    longest = max(lengths)
    ids = torch.full((len(rows), longest), pad_value, dtype=torch.long, device=device)
    for aligned, row in zip(ids, rows.values()):
        aligned[longest - len(row) :] = row
    _check_range(ids, list(rows), num_tokens)
    if min(lengths) == longest:
        return Prompts(ids, None, batched)
    return Prompts(ids, longest - torch.tensor(lengths, device=device), batched)


def _split(prompts: PromptLike, prompt_lens: Tensor | Sequence[int] | None) -> tuple[dict[str, Tensor], bool]:
    """Rows by their name in messages, and whether there was a batch dimension."""
    if isinstance(prompts, Tensor):
        if prompts.ndim not in (1, 2):
            raise ValueError(f"`prompts` must be of shape [B, T] or [T], but is {list(prompts.shape)}")
        batched = prompts.ndim == 2
        rows = list(prompts if batched else prompts[None])
        if prompt_lens is not None:
            lengths = _read_lens(prompt_lens, len(rows), prompts.shape[-1])
            rows = [row[:length] for row, length in zip(rows, lengths)]
    elif not isinstance(prompts, list | tuple):
        raise ValueError(
            "`prompts` must be a tensor, a list of tensors or a list of ints, "
            f"but is a {type(prompts).__name__}"
        )
    elif prompt_lens is not None:
        raise ValueError(
            "`prompt_lens` must be left out when `prompts` is a list; each row has its own length"
        )
    else:
        batched = not any(isinstance(item, int) for item in prompts)
        given = prompts if batched else [prompts]
        rows = [
            _as_row(f"prompts[{index}]" if batched else "prompts", row) for index, row in enumerate(given)
        ]
    if not rows:
        raise ValueError("`prompts` must hold at least one prompt, but is empty")
    return {f"prompts[{index}]" if batched else "prompts": row for index, row in enumerate(rows)}, batched


def _as_row(name: str, row: object) -> Tensor:
    if isinstance(row, Tensor):
        return row
    try:
        # An empty list would become float32 and be refused for its dtype instead of its length.
        return torch.as_tensor(row) if row != [] else torch.empty(0, dtype=torch.long)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be a 1-d tensor or a list of ints, but is {row!r:.60}") from error


def _read_lens(prompt_lens: Tensor | Sequence[int], batch: int, length: int) -> list[int]:
    lengths = prompt_lens.tolist() if isinstance(prompt_lens, Tensor) else list(prompt_lens)
    wanted = f"{batch} whole numbers from 1 to {length}, one per row"
    if not isinstance(lengths, list) or len(lengths) != batch:
        raise ValueError(f"`prompt_lens` must hold {wanted}, but is {lengths}")
    for row, value in enumerate(lengths):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= length:
            raise ValueError(f"`prompt_lens` must hold {wanted}, but is {value!r} at row {row}")
    return lengths


def _check_row(name: str, row: Tensor) -> None:
    if row.ndim != 1:
        raise ValueError(f"`{name}` must be 1-d, but has shape {list(row.shape)}")
    if row.dtype == torch.bool or row.is_floating_point() or row.is_complex():
        raise ValueError(f"`{name}` must hold whole-number ids (torch.long), but is {row.dtype}")
    if len(row) == 0:
        raise ValueError(
            f"`{name}` must hold at least one token, but is empty; start it with a token such as BOS"
        )


def _check_range(ids: Tensor, names: list[str], num_tokens: int) -> None:
    outside = (ids < 0) | (ids >= num_tokens)
    if outside.any():
        row, column = outside.nonzero()[0].tolist()
        raise ValueError(
            f"`{names[row]}` must hold ids from 0 to {num_tokens - 1}, but holds {ids[row, column].item()}"
        )

"""`flagformer show DIR`: a model in flags, sizes, FLOPs and bytes of its decode state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors

if TYPE_CHECKING:
    from flagformer.lab.cli.described import Described

USUAL_LENGTH = 1024


def show(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A directory of `save_pretrained` or of `model.save`, or a YAML file of flags.",
        ),
    ],
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the FLOPs; 1024, or the longest input if that is shorter."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    allow: Allow = None,
) -> None:
    """Show a model in flags, with its sizes, FLOPs, decode state and files. No weights are read.

    Exit status: 0, or 2 if the input is wrong.
    """
    with clear_errors(), allowing(allow):
        from flagformer.lab.cli.described import described

        found = described(directory, allow or [])
        sizes = sizes_of(found, seq_len)
        if as_json:
            record = {"what": found.what, "flags": found.flags, **sizes}
            typer.echo(json.dumps(record, indent=2, default=repr))
        else:
            print_model(directory, found, sizes)


def sizes_of(found: Described, seq_len: int | None) -> dict[str, Any]:
    """The numbers that `show` prints; None for those that a kind of model does not have."""
    from flagformer.lab.study.sizes import active_params, body_params, decode_state, is_vision

    model = found.model
    length, flops = flops_of(model, seq_len)
    state = decode_state(model)
    files = None if found.files is None else found.files._asdict()
    return {
        "params": model.num_params(),
        "params_without_embeddings": None if is_vision(model) else body_params(model),
        "params_active": None if is_vision(model) else active_params(model),
        "flops": flops,
        "seq_len": length,
        "state_bytes_per_token": None if state is None else state.per_token,
        "state_bytes_fixed": None if state is None else state.fixed,
        "files": files,
        "left_out": list(found.dropped),
    }


def flops_of(model: Any, seq_len: int | None) -> tuple[int | None, int | None]:
    """(tokens, FLOPs of a token) of a forward on the meta device; (None, FLOPs of an image) of images."""
    import torch

    from flagformer.lab.study.costs import forward_flops
    from flagformer.lab.study.sizes import ReadsBoth, is_vision, text_parts

    model = model.eval()
    with torch.device("meta"):
        if is_vision(model):
            height, width = (one * size for one, size in zip(model.patches.grid, model.patches.patch))
            images = torch.zeros(
                1, model.own["channels"], height, width, dtype=next(model.parameters()).dtype
            )
            return None, forward_flops(model, images)[0]
        parts = text_parts(model)
        pair = len(parts) > 1
        if not parts or (not pair and parts[0].attn_layers.has_cross):
            return None, None  # it reads more than ids
        longest = min(part.max_seq_len for part in parts)
        length = min(USUAL_LENGTH, longest) if seq_len is None else seq_len
        if length > longest:
            raise ValueError(
                f"`--seq-len` must be at most the model's longest input, {longest}, but is {length}"
            )
        ids = torch.zeros(1, length, dtype=torch.long)
        return length, round(forward_flops(ReadsBoth(model) if pair else model, ids)[0] / length)


def print_model(path: Path, found: Described, sizes: dict[str, Any]) -> None:
    """Print the sizes, and a table of the flags."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flagformer.lab.cli.described import default_of

    console = Console(highlight=False)
    console.print(f"{path}: {found.what}", style="bold", markup=False, soft_wrap=True)
    lines = Table.grid(padding=(0, 2))
    for label, text in size_lines(sizes):
        lines.add_row(Text(f"  {label}", style="dim"), Text(text))
    console.print(lines)
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("flag", "value", "default"):
        grid.add_column(heading, overflow="fold")
    for name, value in found.flags.items():
        grid.add_row(Text(name, style="cyan"), Text(value_text(value)), default_of(name, found.model.flags))
    console.print(grid)


def size_lines(sizes: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, text) of each number that the model has."""
    from flagformer.lab.study.formatting import count, plural, short, size

    lines = [("parameters", count(sizes["params"]))]
    if sizes["params_active"] is not None:
        lines.append(("without embeddings", count(sizes["params_without_embeddings"])))
        lines.append(("active per token", count(sizes["params_active"])))
    if sizes["flops"] is not None:
        tokens = sizes["seq_len"]
        label = "FLOPs per image" if tokens is None else "FLOPs per token"
        of = "" if tokens is None else f" (forward of {count(tokens)} tokens)"
        lines.append((label, short(sizes["flops"]) + of))
    if sizes["state_bytes_per_token"] is not None:
        fixed = sizes["state_bytes_fixed"]
        more = f", and {size(fixed)} per row" if fixed else ""
        lines.append(("decode state per token", size(sizes["state_bytes_per_token"]) + more))
    if sizes["files"] is not None:
        numbers = ", ".join(f"{count(held)} {dtype}" for dtype, held in sizes["files"]["numbers"].items())
        lines.append(
            (
                "files",
                f"{plural(sizes['files']['num_files'], 'file')}, {size(sizes['files']['bytes'])}: {numbers}",
            )
        )
    if sizes["left_out"]:
        names = sizes["left_out"]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(("tensors left out", ", ".join(names[:3]) + more))
    return lines


def value_text(value: Any) -> str:
    """A value as typed; of values by layer, equal neighbours are counted: `5 x 512, 1 x None`."""
    from itertools import groupby

    if not isinstance(value, list | tuple):
        return repr(value)
    runs = [(key, len(list(group))) for key, group in groupby(value, key=repr)]
    if len(runs) < len(value):
        return ", ".join(f"{number} x {key}" for key, number in runs)
    return ", ".join(key for key, _ in runs)

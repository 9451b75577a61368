"""`flagformer verify DIR`: the parity of a published model with transformers, and a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flagformer.lab.cli.errors import clear_errors

if TYPE_CHECKING:
    from flagformer.interop.verify import Certificate


def verify(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory of `save_pretrained` of transformers.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The certificate. [default: DIR.certificate.json, next to DIR]", show_default=False
        ),
    ] = None,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens of a text.")] = 24,
    new_tokens: Annotated[int, typer.Option(min=1, help="Greedy tokens of a text.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the texts.")] = 0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="The largest difference of logits, in their standard deviations.")
    ] = 1e-4,
    fp64: Annotated[
        bool, typer.Option(help="Also run the model here in fp64, in twice the memory, to tell rounding.")
    ] = True,
) -> None:
    """Compare a published model with transformers in fp32 on CPU, and write a certificate.

    Texts are random, of whole and of padded rows, with and without a cache. It needs
    `pip install 'flagformer[hf]'`.

    Exit status: 0 if every check passes, 1 if one fails, 2 if the input is wrong.
    """
    with clear_errors():
        from flagformer.interop.verify import verify as verify_directory
        from flagformer.lab.cli.described import model_folder
        from flagformer.storage.tensors import replace_file

        path = output_path(model_folder(directory), out, ".certificate.json")
        found = verify_directory(
            directory, seq_len=seq_len, new_tokens=new_tokens, seed=seed, tolerance=tolerance, fp64=fp64
        )
        replace_file(path, (json.dumps(found.to_dict(), indent=2, default=repr) + "\n").encode())
        print_certificate(directory, found)
        typer.echo(f"certificate: {path}")
        if not found.passed:
            raise SystemExit(1)


def output_path(directory: Path, out: Path | None, suffix: str) -> Path:
    """`out`, or a file next to the directory with its name and the suffix, before anything is computed;
    ValueError for one that cannot be written."""
    whole = directory.resolve()
    path = whole.with_name(whole.name + suffix) if out is None else out
    if path.is_dir() or not path.parent.is_dir():
        why = "is a directory" if path.is_dir() else f"is in {path.parent}, which does not exist"
        raise ValueError(f"`--out` must be a file in a directory that exists, but {path} {why}")
    return path


def print_certificate(directory: Path, found: Certificate) -> None:
    """Print a row for each check."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    version = found.versions["transformers"]
    title = f"{directory}: `{found.model_type}` ({found.architecture}), transformers {version}"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    exact = any(check.ours_exact is not None for check in found.checks)
    runs = ("transformers from fp64", "here from fp64") if exact else ()
    numbers = ("difference / std", *runs, "KL, nats", "greedy tokens")
    for heading, justify in (("check", "left"), *((one, "right") for one in numbers), ("", "left")):
        grid.add_column(heading, justify=justify, no_wrap=heading == "check")  # type: ignore[arg-type]
    for check in found.checks:
        grid.add_row(
            check.name,
            f"{check.gap:.1e}",
            *((f"{check.theirs_exact:.1e}", f"{check.ours_exact:.1e}") if exact else ()),
            "" if check.kl is None else f"{check.kl:.1e}",
            "" if check.greedy is None else f"{check.greedy} of {check.tokens}",
            Text("passed", style="green") if check.passed else Text("FAILED", style="bold red"),
        )
    console.print(grid)
    failed = sum(not check.passed for check in found.checks)
    verdict = f"{failed} of {len(found.checks)} checks fail" if failed else "all checks pass"
    limits = f"differences of at most {found.tolerance:g} standard deviations, equal greedy tokens"
    console.print(f"{verdict}: {limits}", soft_wrap=True)

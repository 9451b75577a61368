"""The `flagformer` command. Subcommands import their modules when they are called."""

from __future__ import annotations

from typing import Annotated

try:
    import typer
except ModuleNotFoundError:
    raise SystemExit(
        "error: the command line needs more than the library: pip install 'flagformer[study]'"
    ) from None

from flagformer import __version__
from flagformer.lab.cli.audit import audit
from flagformer.lab.cli.diff import diff
from flagformer.lab.cli.evaluate import evaluate
from flagformer.lab.cli.flags import flags
from flagformer.lab.cli.generate import generate
from flagformer.lab.cli.mup import mup
from flagformer.lab.cli.new import new
from flagformer.lab.cli.own_code import with_own_code
from flagformer.lab.cli.presets import presets
from flagformer.lab.cli.show import show
from flagformer.lab.cli.study import study
from flagformer.lab.cli.track import track
from flagformer.lab.cli.train import train
from flagformer.lab.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One transformer core configured by flags: build, train, audit and compare architectures.",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"flagformer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


app.add_typer(study, name="study")
app.add_typer(mup, name="mup")
app.add_typer(new, name="new")
for command in (train, track, generate, audit, flags, presets, show, diff, verify):
    app.command()(with_own_code(command))
app.command("eval")(with_own_code(evaluate))


def main() -> None:
    """Entry point of the `flagformer` command."""
    app()

"""Sub-commands of ``lowbit``; each imports what it needs when it runs, so that help needs typer alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import lowbit

from . import _models, _tools
from ._exits import guarded

__all__ = ["app", "run"]

app = typer.Typer(
    name="lowbit",
    help="Low-bit compression and adaptation of neural networks: specified, checked, usable on real models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(name="compress")(_models.compress)
app.command(name="eval")(_models.evaluate)
app.command(name="demo")(_models.demo)
app.command(name="check")(_tools.check)
app.command(
    name="conform",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(_tools.conform)
app.command(name="bench")(_tools.bench)
app.command(name="info")(_tools.info)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lowbit {lowbit.__version__}")
        raise typer.Exit


@app.callback()
def _lowbit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None, command: Callable[..., Any] = app) -> int:
    """Run the command line and return its exit status; expected errors become one message on standard error."""
    return guarded(command, arguments)

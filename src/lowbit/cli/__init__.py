"""Sub-commands of ``lowbit``; each imports what it needs when it runs, so that help needs typer and NumPy alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

import lowbit
from lowbit.conformance.cli import conform

from . import _models, _tools
from ._exits import guarded

__all__ = ["app", "run"]

app = typer.Typer(
    name="lowbit",
    help="Low-bit compression and adaptation of neural networks: specified, checked, usable on real models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _add(name: str, work: Callable[..., Any]) -> None:
    # What lists commands cuts the first line of their help, but not a text of its own.
    app.command(name=name, short_help=(inspect.getdoc(work) or "").partition("\n\n")[0])(work)


_add("compress", _models.compress)
_add("plan", _models.plan)
_add("eval", _models.evaluate)
_add("compare", _models.compare)
_add("demo", _models.demo)
_add("check", _tools.check)
_add("conform", conform)
_add("bench", _tools.bench)
_add("info", _tools.info)


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

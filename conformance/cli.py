"""``lowbit conform``: run the conformance suite against a backend and report clause by clause.

What it needs besides NumPy it imports when it runs, so that help and completion need no extra.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import lowbit
from lowbit import _hints, console

__all__ = ["Profile", "conform", "run_suite", "run_vectors"]

USAGE = 2  # exit code of a wrong call


class Profile(StrEnum):
    """How many examples per check."""

    quick = "quick"
    full = "full"
    stress = "stress"


def _clauses() -> list[str]:
    from .clauses import CLAUSES

    return list(CLAUSES)


def conform(
    backend: Annotated[
        str,
        typer.Argument(
            help="Entry-point name, package.module, or package.module:attribute.",
            autocompletion=lambda: list(lowbit.available()),
        ),
    ],
    xfails: Annotated[Path | None, typer.Option(help="Expected failures, lines of 'Q-3  # reason'.")] = None,
    profile: Annotated[
        Profile, typer.Option(help="25, 200 or 2000 examples per check.", case_sensitive=False)
    ] = Profile.quick,
    seed: Annotated[int | None, typer.Option(help="Draw other examples; without, every run draws the same.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the record as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a Markdown table.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the backend, name=value; repeatable.")] = None,
    clause: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this clause (Q-3a), clause with refinements (Q-3), or chapter (Q); repeatable.",
            autocompletion=_clauses,
        ),
    ] = None,
    vectors_only: Annotated[
        bool,
        typer.Option(
            "--vectors-only", help="Frozen vectors only: needs neither hypothesis, pytest nor the specification."
        ),
    ] = False,
) -> None:
    """Check a backend against the specification: lowbit conform mypackage.backend

    Exit code 0 without a failed clause, 1 with one, 2 for a wrong call.
    """
    forms = {"json": json, "markdown": markdown, "html": html}
    options, clauses = list(option or ()), list(clause or ())
    try:
        with _modules_of_this_folder(backend), _dash_is_standard_output(forms):
            if vectors_only:
                code = run_vectors(backend, options=options, clauses=clauses, xfails=xfails, forms=forms)
            else:
                code = run_suite(
                    backend,
                    profile=profile.value,
                    seed=seed,
                    options=options,
                    clauses=clauses,
                    xfails=xfails,
                    forms=forms,
                )
    except (ValueError, OSError, lowbit.BackendError) as error:
        console.complain(f"lowbit conform: {error}")
        raise typer.Exit(USAGE) from error
    raise typer.Exit(code)


@contextmanager
def _dash_is_standard_output(forms: dict[str, Path | None]) -> Iterator[None]:
    """A report to ``-`` has standard output for itself: what else is printed goes to standard error."""
    dashed = [form for form, path in forms.items() if str(path) == "-"]
    if not dashed:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lowbit-conform-") as folder:
        forms.update({form: Path(folder, form) for form in dashed})
        with redirect_stdout(sys.stderr):
            yield
        for written in filter(Path.is_file, (Path(folder, form) for form in dashed)):
            typer.echo(written.read_text(encoding="utf-8"), nl=False)


@contextmanager
def _modules_of_this_folder(backend: str) -> Iterator[None]:
    """Let a backend be a module of the current folder, looked for last; a registered one never comes from there."""
    here, before = os.getcwd(), list(sys.path)
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):
        del sys.path[0]  # put there by ``python -m``, before everything that is installed
    if backend not in lowbit.available():
        sys.path.append(here)
    try:
        yield
    finally:
        sys.path[:] = before


def run_vectors(
    backend: str,
    *,
    options: Sequence[str] = (),
    clauses: Sequence[str] = (),
    xfails: Path | None = None,
    forms: dict[str, Path | None] | None = None,
) -> int:
    """The frozen vectors; returns the exit code.

    Raises:
        ClauseError, BackendError, ValueError, OSError: a wrong call.
    """
    from . import report, vectors
    from .clauses import select
    from .options import parse_options

    wanted = select(clauses)
    expected = report.read_xfails(xfails) if xfails else {}
    loaded = lowbit.load(backend, **parse_options(options))
    results = vectors.check(loaded, wanted)
    known = {r.clause for r in results}
    run = report.Run(
        spec=lowbit.SPEC_VERSION,
        suite=lowbit.__version__,
        backend=str(loaded.name),
        device=str(loaded.device),
        profile="vectors",
        clauses=report.combine(results, [i for i in wanted if i in known], expected),
    )
    report.write(run, **{f"{form}_path": path for form, path in (forms or {}).items()})
    console.show(report.to_text(run))
    for failed in (c for c in run.clauses if c.status == "fail"):
        console.show(f"\n{failed.id}: {failed.note}")
    return 0 if run.ok else 1


@contextmanager
def _alone() -> Iterator[str]:
    """A pytest without the plugins, configuration and folder of whoever calls; yields an empty folder."""
    environment, bytecode = dict(os.environ), sys.dont_write_bytecode
    with tempfile.TemporaryDirectory(prefix="lowbit-conform-") as folder:
        Path(folder, "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.environ.pop("PYTEST_ADDOPTS", None)
        sys.dont_write_bytecode = True  # nothing is cached beside the installed suite
        try:
            yield folder
        finally:
            sys.dont_write_bytecode = bytecode
            os.environ.clear()
            os.environ.update(environment)


def run_suite(
    backend: str,
    *,
    profile: str = "quick",
    seed: int | None = None,
    options: Sequence[str] = (),
    clauses: Sequence[str] = (),
    xfails: Path | None = None,
    forms: dict[str, Path | None] | None = None,
) -> int:
    """``pytest --pyargs lowbit.conformance.suite`` with the plugin; returns the exit code.

    Raises:
        ClauseError, BackendError, ValueError, OSError: a wrong call, before pytest starts.
        lowbit.BackendError: hypothesis or pytest is missing, with the extra to install.
    """
    from . import report
    from .clauses import select
    from .options import parse_options

    select(clauses)
    if xfails is not None:
        report.read_xfails(xfails)
    lowbit.load(backend, **parse_options(options))  # fails here in one line instead of inside pytest
    try:
        import hypothesis  # noqa: F401
        import pytest
    except ModuleNotFoundError as error:
        hint = f"the suite needs {error.name}: {_hints.hint('conformance')}, or use --vectors-only"
        raise lowbit.BackendError(hint) from error
    with _alone() as folder:
        alone = [
            "-p",
            "no:cacheprovider",
            "--capture=sys",
            "-c",
            f"{folder}/pytest.ini",
            "--rootdir",
            folder,
            "--noconftest",
        ]
        style = ["--import-mode=importlib", "--assert=plain", "-q", "--tb=short", "-rN", "--no-header", "-W", "ignore"]
        arguments = ["--pyargs", "lowbit.conformance.suite", "-p", "lowbit.conformance.plugin", *alone, *style]
        arguments += ["--lowbit-backend", backend, "--lowbit-profile", profile]
        arguments += [f"--lowbit-option={word}" for word in options]
        arguments += [f"--lowbit-clause={word}" for word in clauses]
        arguments += [] if seed is None else ["--lowbit-seed", str(seed)]
        if xfails is not None:
            arguments += ["--lowbit-xfails", str(xfails.resolve())]
        for form, path in (forms or {}).items():
            if path is not None:
                arguments += [f"--lowbit-{form}", os.path.abspath(path)]  # a pipe has no other name
        return int(pytest.main(arguments))

"""From exceptions to exit statuses: 0 done, 1 a check failed or a package is missing, 2 bad input, 130 interrupted."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any

import lowbit
from lowbit._hints import hint
from lowbit.console import complain
from lowbit.formats.errors import CheckpointError
from lowbit.runs.errors import RecipeError

__all__ = ["Refusal", "guarded"]

_BAD_INPUT = 2
_INTERRUPTED = 130
_EXTRAS = {  # the smallest one that brings a package
    "numba": "numba",
    "llvmlite": "numba",
    "hypothesis": "conformance",
    "pytest": "conformance",
    "jinja2": "report",
    "markupsafe": "report",
}


class Refusal(Exception):
    """Bad input that no recipe has seen."""


def guarded(command: Callable[..., Any], arguments: list[str] | None) -> int:
    """Run a command and return its exit status; expected errors become one message on standard error."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        result = command(args=arguments, prog_name="lowbit", standalone_mode=False)
        status = result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to flush
        status = 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "lowbit"):
            raise
        complain(f"this command needs {package}: {hint(_EXTRAS.get(package, 'hf'))}")
        status = 1
    except Exception as error:
        status = _report(error)
    if status == _INTERRUPTED:
        resumes = words[:1] in (["compress"], ["demo"])
        print(
            "interrupted" + (": the same command continues after the last finished block" if resumes else ""),
            file=sys.stderr,
        )
    return status


def _refusals() -> tuple[type[BaseException], ...]:
    """Errors whose message is for the person at the terminal; the reference's only if something has loaded it."""
    reference = sys.modules.get("lowbit.reference.errors")
    extra = () if reference is None else (reference.SpecError,)
    return (RecipeError, CheckpointError, lowbit.BackendError, Refusal, *extra)


def _report(error: Exception) -> int:
    """Print an expected error and return its exit status; anything else is a defect and keeps its traceback."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if type(error).__name__ == "Abort":
        return _INTERRUPTED
    if isinstance(code, int):  # typer's own: a usage error shows itself, Exit carries a status
        if show is not None:
            shown = io.StringIO()
            show(shown)
            complain(shown.getvalue().rstrip("\n"))
        return code
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        complain(f"error: {place}{error.strerror}")
        return _BAD_INPUT
    if isinstance(error, _refusals()):
        complain(f"error: {error}")
        return _BAD_INPUT
    raise error

"""``python -m lowbit.conformance BACKEND``: the same as ``lowbit conform BACKEND``."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # put there by python -m: a file of the folder must not pass for a package

from lowbit import _hints


def main() -> None:
    """Run the command, or say what it needs."""
    try:
        import typer

        from .cli import conform
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "click", "rich"):
            raise
        alone = "from Python, lowbit.conformance.vectors.check(backend) needs NumPy alone"
        sys.exit(f"the command needs {error.name}: {_hints.hint('conformance')}; {alone}")
    typer.run(conform)


if __name__ == "__main__":
    main()

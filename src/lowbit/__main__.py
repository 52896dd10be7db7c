"""The ``lowbit`` command: :mod:`lowbit.cli`, imported late so that a missing extra gives a hint."""

from __future__ import annotations

import sys

__all__ = ["main"]

_EXTRA = {"typer": "hf", "rich": "hf", "click": "hf"}


def main() -> None:
    """Run the command line; exit status 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    try:
        from lowbit.cli import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        print(f"the lowbit command needs {missing}: pip install 'lowbit[{_EXTRA[missing]}]'", file=sys.stderr)
        sys.exit(1)
    sys.exit(run())


if __name__ == "__main__":
    main()

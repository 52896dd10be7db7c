"""The ``lowbit`` command."""

from __future__ import annotations

import sys

from lowbit.cli import run

__all__ = ["main"]


def main() -> None:
    """Run the command line; exit status 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    sys.exit(run())


if __name__ == "__main__":
    main()

"""The ``lowbit`` command."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]  # put there by python -m: a file of the folder must not pass for a package

from lowbit.cli import run

__all__ = ["main"]


def main() -> None:
    """Run the command line; exit status 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    sys.exit(run())


if __name__ == "__main__":
    main()

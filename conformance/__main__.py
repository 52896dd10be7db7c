"""``python -m lowbit.conformance BACKEND``: the same as ``lowbit conform BACKEND``."""

from __future__ import annotations

import typer

from .cli import conform

if __name__ == "__main__":
    typer.run(conform)

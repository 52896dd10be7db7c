"""One self-contained page per run: what was done, what it cost, and the evidence layer by layer."""

from .page import render

__all__ = ["render"]

"""The two ways an operation may refuse, shared by the specification and every backend.

An operation either answers or refuses aloud: it never warns instead of answering and never falls back in silence.
"""

from __future__ import annotations

__all__ = ["SpecError", "Unsupported"]


class SpecError(ValueError):
    """An argument violates a clause of the specification.

    Raised before any work is done and before anything is written.

    Attributes:
        clause: the clause that is violated, such as ``"Q-2"``.
        reason: what is wrong, with the offending value, and what would be right.
    """

    def __init__(self, clause: str, reason: str) -> None:
        super().__init__(f"[{clause}] {reason}")
        self.clause = clause
        self.reason = reason


class Unsupported(NotImplementedError):
    """The arguments are valid, but this backend cannot serve them.

    Attributes:
        reason: why, in one sentence, so that a report can print it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

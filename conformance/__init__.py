"""The conformance kit: whether a backend computes what the specification says, clause by clause.

Reading order: ``clauses`` (what is checked), ``compare`` (how, and every tolerance with its derivation),
``strategies`` (on which inputs), ``laws`` (what must hold for results that may legitimately differ), ``calls`` (of
every operation, ordinary, empty and wrong), ``subject`` and ``kit`` (what a test holds), ``suite`` (the tests),
``plugin``, ``report`` and ``cli`` (running and telling), ``vectors`` (frozen files for people without Python).

    lowbit conform mypkg.backend --json out.json --html out.html

Importing this package loads NumPy only; the suite needs ``pip install 'lowbit[conformance]'``.
"""

from __future__ import annotations

from .clauses import CLAUSES, Clause

__all__ = ["CLAUSES", "Clause"]

"""W: diagnostics. The rules are those of :mod:`lowbit.reference.diagnostics`.

Orders are never sorted whole: the place of a key is the number of keys before it, and only the top ones are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.diagnostics import (
    LOST,
    SYMMETRY,
    check_iteration,
    check_layer,
    check_maps,
    check_starts,
    check_words,
)
from lowbit.accel.common.refusals import check_matrix, check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import AttentionNorms, EigenStop, Eigenvalues, PairRule, RowRule, TokenRange

from ._arrays import Array, fixed, refuse_bad, weights, working_dtype
from ._jit import kernel, pieces, share

__all__ = ["attention_norms", "attention_range", "cover_length", "power_eigenvalues", "ranking_loss"]


@kernel
def _misranked(student: Any, teacher: Any, once: bool) -> float:
    """Σ over rows and pairs of what the student orders otherwise, in float64."""
    n = student.shape[1]
    total = 0.0
    for r in range(student.shape[0]):
        for i in range(n):
            s, t = student[r, i], teacher[r, i]
            inner = 0.0
            for j in range(i + 1, n):
                d = np.float64(student[r, j] - s)
                rise = teacher[r, j] - t
                cost = max(d, 0.0) if rise < 0 else (max(-d, 0.0) if rise > 0 else 0.0)
                twice = not once and i > 0 and j < n - 1
                inner += 2.0 * cost if twice else cost
            total += inner
    return total


@kernel
def _worst_places(student: Any, teacher: Any, top: int, rows: int) -> int:
    """Σ over the first rows of the last place in the student's order of the teacher's top keys."""
    n = student.shape[1]
    taken = np.empty(n, np.bool_)
    total = 0
    for r in range(rows):
        taken[:] = False
        worst = 0
        for _ in range(top):
            best = -1
            for j in range(n):
                if not taken[j] and (best < 0 or teacher[r, j] > teacher[r, best]):
                    best = j
            taken[best] = True
            place = 0
            for j in range(n):
                if student[r, j] > student[r, best] or (student[r, j] == student[r, best] and j < best):
                    place += 1
            worst = max(worst, place)
        total += worst
    return total


def _maps(clause: str, student: Any, teacher: Any) -> tuple[Array, Array]:
    given = weights(clause, "student", student), weights(clause, "teacher", teacher)
    check_maps(clause, given[0].shape, given[1].shape)
    dtype = working_dtype(*given)
    S, T = (fixed(a, dtype) for a in given)
    refuse_bad(clause, "student", S)
    refuse_bad(clause, "teacher", T)
    return S, T


def ranking_loss(student: Array, teacher: Array, /, *, pairs: PairRule = "published") -> Array:
    """Cost of the pairs of keys that the student orders otherwise, per head, summed in float64.  [W-6]"""
    check_words("W-6", pairs=pairs)
    S, T = _maps("W-6", student, teacher)
    out = np.zeros(len(S))

    def work(h: int) -> None:
        out[h] = _misranked(S[h], T[h], pairs == "once")

    share(len(S), work)
    return out.astype(S.dtype)


def cover_length(student: Array, teacher: Array, /, *, top: int = 5, rows: RowRule = "published") -> Array:
    """How much of the student's order covers the teacher's top keys, per head.  [W-7]"""
    check_words("W-7", rows=rows)
    S, T = _maps("W-7", student, teacher)
    n = S.shape[1]
    out = np.zeros(len(S))
    if n:
        k = check_whole("W-7", "top", top, 1, n)

        def work(h: int) -> None:
            out[h] = _worst_places(S[h], T[h], k, n if rows == "all" else n - 1) / n**2

        share(len(S), work)
    return out.astype(S.dtype)


def attention_range(x: Array, /) -> TokenRange[Array]:
    """Least and largest feature of every token.  [W-8]"""
    given = weights("W-8", "x", x)
    check_matrix("W-8", "x", given.shape, (None, None))
    if given.shape[1] == 0:
        raise SpecError("W-8", "x needs at least one feature")
    Y = fixed(given, working_dtype(given))
    refuse_bad("W-8", "x", Y)
    return TokenRange(Y.min(axis=1), Y.max(axis=1))


def attention_norms(maps: Array, x: Array, w_v: Array, b_v: Array | None, w_o: Array, /) -> AttentionNorms[Array]:
    """How much a token is attended to, and how much that moves, per head.  [W-9]"""
    named: dict[str, Any] = {"maps": maps, "x": x, "w_v": w_v, "b_v": b_v, "w_o": w_o}
    given = {name: weights("W-9", name, a) for name, a in named.items() if a is not None}
    H, n, v = check_layer("W-9", {name: a.shape for name, a in given.items()})
    dtype = working_dtype(*given.values())
    for name, a in given.items():
        given[name] = fixed(a, dtype)
        refuse_bad("W-9", name, given[name])
    values = given["x"] @ given["w_v"].T
    if "b_v" in given:
        values = values + given["b_v"]
    size, width = np.zeros((H, n), dtype), v // H

    def work(t: int) -> None:
        h, rows = t // len(parts), slice(*parts[t % len(parts)])
        head = slice(h * width, (h + 1) * width)
        f = values[rows, head] @ given["w_o"][:, head].T
        size[h, rows] = np.sqrt(np.einsum("nm,nm->n", f, f))

    parts = pieces(n, max(given["w_o"].shape[0], 1))
    share(H * len(parts), work)
    seen = given["maps"].mean(axis=1) if n else np.zeros((H, 0), dtype)
    attended = np.abs(given["maps"]).mean(axis=1) if n else seen
    return AttentionNorms(seen, size, attended * size)


def power_eigenvalues(
    operator: Array | Callable[[Array], Array],
    start: Array,
    /,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    stop: EigenStop = "change",
    shift: float = 0.0,
) -> Eigenvalues[Array]:
    """Eigenvalues of largest magnitude of a symmetric operator, with a bound on their error, in float64.  [W-10]"""
    most, ε, σ = check_iteration(stop, iterations, tolerance, shift)
    first = weights("W-10", "start", start)
    count, p = check_starts(first.shape)
    matrix = None if callable(operator) else weights("W-10", "operator", operator)
    dtype = working_dtype(first) if matrix is None else working_dtype(first, matrix)
    starts = fixed(first, dtype)
    refuse_bad("W-10", "start", starts)
    wide = starts
    if matrix is not None:
        check_matrix("W-10", "operator", matrix.shape, (p, p))
        matrix = fixed(matrix, dtype)
        refuse_bad("W-10", "operator", matrix)
        if p and np.abs(matrix - matrix.T).max() > SYMMETRY * np.abs(matrix).max():
            raise SpecError("W-10", "operator must be symmetric")
        wide = matrix.astype(np.float64)

    def product(v: Array) -> Array:
        if not callable(operator):
            return np.asarray(wide @ v)
        y = weights("W-10", "product", operator(v.astype(dtype)))
        check_matrix("W-10", "product", y.shape, (p,))
        y = fixed(y, np.float64)
        refuse_bad("W-10", "product", y)
        return y

    value, residual, vectors, steps = np.zeros(count), np.zeros(count), np.zeros((count, p)), np.zeros(count, np.int32)
    for k in range(count):
        v, before = starts[k].astype(np.float64), np.inf
        if not v.any():
            raise SpecError("W-10", f"start {k} is zero")
        v /= np.linalg.norm(v)
        for step in range(1, most + 1):
            for _ in range(2):
                v -= (vectors[:k] @ v) @ vectors[:k]
            length = np.linalg.norm(v)
            if length <= LOST:
                if step == 1:
                    raise SpecError("W-10", f"start {k} lies in the span of the vectors before it")
                break
            v /= length
            y = product(v) - σ * v
            μ = float(v @ y)
            vectors[k], steps[k] = v, step
            value[k], residual[k] = μ + σ, np.linalg.norm(y - μ * v)
            done = residual[k] <= ε * abs(μ) if stop == "residual" else abs(μ - before) < ε * (abs(before) + 1e-6)
            size = np.linalg.norm(y)
            if size == 0 or (done and (stop == "residual" or step > 1)):
                break
            v, before = y / size, μ
    return Eigenvalues(value.astype(dtype), residual.astype(dtype), vectors.astype(dtype), steps)

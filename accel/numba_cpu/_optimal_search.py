"""Kernels of the optimal search of a table: costs of pieces, and the shortest path over knots.

The cost of a piece comes from sums up to each knot in constant time, whatever the number of scales, and costs lie by
their right end, so that the inner loop reads memory in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._genetic_search import chord
from ._jit import kernel

__all__ = ["costs", "excess", "line", "objective_of", "shortest", "sums_before"]


@kernel
def sums_before(x: Any, y: Any, cuts: Any, weight: Any, out: Any) -> None:
    """Weighted sums of 1, x, y, x², xy, y² over the samples left of every knot, views added up: (6, M)."""
    out[:] = 0.0
    for v in range(len(cuts)):
        run = np.zeros(6)
        t = cuts[v, 0]
        for j in range(cuts.shape[1]):
            while t < cuts[v, j]:
                run[0] += weight[v]
                run[1] += weight[v] * x[t]
                run[2] += weight[v] * y[t]
                run[3] += weight[v] * x[t] * x[t]
                run[4] += weight[v] * x[t] * y[t]
                run[5] += weight[v] * y[t] * y[t]
                t += 1
            for s in range(6):
                out[s, j] += run[s]


@kernel
def line(i: int, j: int, a: Any, v: Any, x: Any, cuts: Any, sums: Any, squares: bool, unit: float) -> Any:
    """(slope, intercept) of the piece between the knots i and j."""
    if not squares:
        return chord(a[i], v[i], a[j], v[j], unit)
    least, most = np.inf, -np.inf
    for view in range(len(cuts)):
        if cuts[view, i] < cuts[view, j]:
            least, most = min(least, x[cuts[view, i]]), max(most, x[cuts[view, j] - 1])
    if least > most:
        return 0.0, 0.0
    s1 = sums[0, j] - sums[0, i]
    mx, my = (sums[1, j] - sums[1, i]) / s1, (sums[2, j] - sums[2, i]) / s1
    k = 0.0
    if least < most:
        k = ((sums[4, j] - sums[4, i]) - s1 * mx * my) / ((sums[3, j] - sums[3, i]) - s1 * mx * mx)
    b = my - k * mx
    if unit == 0.0:
        return k, b
    return np.rint(k / unit) * unit, np.rint(b / unit) * unit


@kernel
def _largest(i: int, j: int, k: float, b: float, x: Any, y: Any, cuts: Any) -> Any:
    """Largest distance of the samples between two knots from a line."""
    m0 = m1 = m2 = m3 = 0.0
    for view in range(len(cuts)):
        xs, ys = x[cuts[view, i] : cuts[view, j]], y[cuts[view, i] : cuts[view, j]]
        stop = xs.size // 4 * 4
        for t in range(0, stop, 4):
            e0, e1 = abs(ys[t] - (k * xs[t] + b)), abs(ys[t + 1] - (k * xs[t + 1] + b))
            e2, e3 = abs(ys[t + 2] - (k * xs[t + 2] + b)), abs(ys[t + 3] - (k * xs[t + 3] + b))
            m0, m1 = e0 if e0 > m0 else m0, e1 if e1 > m1 else m1
            m2, m3 = e2 if e2 > m2 else m2, e3 if e3 > m3 else m3
        for t in range(stop, xs.size):
            m0 = max(m0, abs(ys[t] - (k * xs[t] + b)))
    return max(max(m0, m1), max(m2, m3))


@kernel
def costs(
    first: int, last: int, a: Any, v: Any, x: Any, y: Any, cuts: Any, sums: Any, squares: bool, unit: float, far: bool,
    cost: Any,
) -> None:  # fmt: skip
    """cost[j, i] of the pieces that end at knots first … last − 1."""
    for j in range(first, last):
        for i in range(j + 1):
            k, b = line(i, j, a, v, x, cuts, sums, squares, unit)
            if far:
                cost[j, i] = _largest(i, j, k, b, x, y, cuts)
            else:
                s1, sx, sy = sums[0, j] - sums[0, i], sums[1, j] - sums[1, i], sums[2, j] - sums[2, i]
                xx, xy, yy = sums[3, j] - sums[3, i], sums[4, j] - sums[4, i], sums[5, j] - sums[5, i]
                cost[j, i] = max(yy - k * (2.0 * xy - k * xx - 2.0 * b * sx) - b * (2.0 * sy - b * s1), 0.0)


@kernel
def _advance(u: Any, cost: Any, low: int, stop: int, far: bool) -> Any:
    """min over low ≤ i < stop of u[i] ⊕ cost[i], four running minima."""
    m0 = m1 = m2 = m3 = np.inf
    i = low
    while i + 4 <= stop:
        if far:
            m0, m1 = min(m0, max(u[i], cost[i])), min(m1, max(u[i + 1], cost[i + 1]))
            m2, m3 = min(m2, max(u[i + 2], cost[i + 2])), min(m3, max(u[i + 3], cost[i + 3]))
        else:
            m0, m1 = min(m0, u[i] + cost[i]), min(m1, u[i + 1] + cost[i + 1])
            m2, m3 = min(m2, u[i + 2] + cost[i + 2]), min(m3, u[i + 3] + cost[i + 3])
        i += 4
    while i < stop:
        m0 = min(m0, max(u[i], cost[i]) if far else u[i] + cost[i])
        i += 1
    return min(min(m0, m1), min(m2, m3))


@kernel
def shortest(cost: Any, far: bool, u: Any, path: Any) -> None:
    """Potentials (L.22), and the knots of a best table."""
    n, m = u.shape[0] - 1, u.shape[1]
    u[:] = 0.0
    for s in range(1, n + 1):
        low, stop = (0, 1) if s == 1 else (1, m - 1)
        begin, end = (m - 1, m) if s == n else (1, m - 1)
        for j in range(begin, end):
            u[s, j] = _advance(u[s - 1], cost[j], low, min(stop, j + 1), far)
    path[n] = m - 1
    for s in range(n, 0, -1):
        j = path[s]
        low, stop = (0, 1) if s == 1 else (1, min(m - 1, j + 1))
        for i in range(low, stop):
            if (max(u[s - 1, i], cost[j, i]) if far else u[s - 1, i] + cost[j, i]) == u[s, j]:
                path[s - 1] = i
                break


@kernel
def excess(u: Any, cost: Any, far: bool) -> Any:
    """What the potentials promise too much, step by step, summed: (L.23)."""
    n, m = u.shape[0] - 1, u.shape[1]
    total = max(0.0, u[0, 0])
    for s in range(1, n + 1):
        low, stop = (0, 1) if s == 1 else (1, m - 1)
        begin, end = (m - 1, m) if s == n else (1, m - 1)
        most = 0.0
        for j in range(begin, end):
            most = max(most, u[s, j] - _advance(u[s - 1], cost[j], low, min(stop, j + 1), far))
        total += most
    return total


@kernel
def objective_of(x: Any, y: Any, cuts: Any, weight: Any, slopes: Any, intercepts: Any, path: Any, far: bool) -> Any:
    """Objective (L.21) of a table whose pieces lie between the columns ``path`` of the cuts."""
    total = 0.0
    for s in range(slopes.size):
        for view in range(len(cuts)):
            part = 0.0
            for t in range(cuts[view, path[s]], cuts[view, path[s + 1]]):
                e = y[t] - (slopes[s] * x[t] + intercepts[s])
                if far:
                    total = max(total, abs(e))
                else:
                    part += e * e
            total += weight[view] * part
    return total

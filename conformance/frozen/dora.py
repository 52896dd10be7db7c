"""Vectors of chapter D: magnitude and direction apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import compare, rules
from .inputs import NARROW, SPEC, U32, Options, Table, eighths, near, suite


def build(table: Table) -> None:
    _layers(table)
    dora = suite("dora")
    w, b, a = eighths("D-w", 4, 6), eighths("D-b", 4, 2), eighths("D-a", 2, 6)
    m = np.array([1.5, 0, -2, 0.75], np.float32)
    problem = suite("dora").DoraProblem(w, b, a, m, 2.0)
    wz, bz = w.copy(), b.copy()
    wz[1], bz[1] = 0, -0.0
    holed = suite("dora").DoraProblem(wz, bz, a, m + 1, 2.0)
    layouts = ("linear", "transposed", "conv")
    thirds = holed._replace(w=wz / np.float32(3))
    for s in layouts:
        table.recorded("D-2a", "test_nothing_changes_at_the_start", f"{s}, a row of zeros", problem=thirds, layout=s)
    table.recorded("D-3", "test_factored_norm", "a row of zeros", problem=holed)
    table.call("D-4a", "a row of zeros", [wz, bz, a, m + 1], rules.exact("1", np.zeros(6)), scaling=2.0)
    x, bias = eighths("D-x", 3, 6), eighths("D-bias", 4)
    rule = near("T.1", np.full(3, bias[1]), compare.tiny(1, NARROW))
    table.call("D-5a", "a row of zeros", [x, x, wz, bias, bz, a, m + 1], rule, scaling=2.0)
    grad = eighths("D-g", 4, 6)
    e = dora.exact(holed, U32)
    A, G = 2.0 * a.astype(np.float64), grad[1].astype(np.float64)
    for detach in (True, False):
        expect = [rules.exact("magnitude.1", np.float64(0)), rules.forward("B.1", A @ G, np.abs(A) @ np.abs(G), 9)]
        about = f"a row of zeros, detach {detach}"
        table.call("D-6b", about, [grad, wz, bz, a, m + 1], *expect, scaling=2.0, detach=detach)
    table.recorded("D-7", "test_unmerge_uses_the_factor_that_it_is_given", "any factor", problem=problem)
    merged = SPEC.dora_merge(wz, bz, a, m + 1, scaling=2.0)
    expect = [
        near("factor", merged.factor, np.abs(e.g) * (e.slip + compare.gamma(2, U32)) + compare.tiny(1, NARROW)),
        near("weight", merged.weight, dora.weight_error(e)),
    ]
    table.call("D-7", "a row of zeros", [wz, bz, a, m + 1], *expect, op="dora_merge", scaling=2.0)
    lost = 2 * compare.gamma(2 * 2 + 12, U32) * e.bulk + compare.tiny(2 * 2 + 12, NARROW) / np.abs(e.g)[:, None]
    at = len(table["D-7"]) - 1
    arrays = [rules.earlier(at, "weight"), bz, a, rules.earlier(at, "factor")]
    table.call("D-7", "what was merged", arrays, near("", wz, lost), op="dora_unmerge", scaling=2.0)
    table.recorded("D-8", "test_dvora", "factors and gradients", case=(problem, grad))
    table.recorded("D-9", "test_decomposition_change", "rows that turn, one that vanishes", problem=problem)
    e = dora.exact(problem, U32)
    error = dora.weight_error(e) + compare.gamma(1, U32) * (np.abs(e.g)[:, None] * e.bulk + e.bulk)
    off, change = float(np.linalg.norm(error)), e.g[:, None] * e.v - e.w
    tail, size = float(np.linalg.norm(np.linalg.svd(change, compute_uv=False)[2:])), float(np.linalg.norm(change))
    allowed = compare.residual_gap(size + off, 6, U32) + 2 * off + compare.tiny(w.size, NARROW)
    expect = [
        rules.residual(change, np.eye(6), tail, allowed / compare.gamma(1, U32), 1),
        near("residual", np.float64(tail), 2 * allowed),
        near("update", np.float64(size), allowed),
    ]
    table.call("D-10", "rank 2", [w, b, a, m], *expect, scaling=2.0, rank=2)


def _layers(table: Table) -> None:
    """A layer in the middle of training, with a row of zeros, stored in three ways."""
    random = np.random.default_rng(20240231)
    m, k, r, scaling = 5, 12, 2, 2.0
    w, b, a, x, grad = (
        random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (m, r), (r, k), (3, k), (m, k))
    )
    w[1], b[1] = 0, 0
    magnitude, bias = ((0.5 + random.random(m)).astype(np.float32) for _ in range(2))
    stored = {
        "linear": (w, b, a),
        "transposed": (np.ascontiguousarray(w.T), b, a),
        "conv": (w.reshape(m, 2, 3, 2), b.reshape(m, r, 1, 1), a.reshape(r, 2, 3, 2)),
    }
    bulk = np.abs(w).astype(np.float64) + scaling * np.abs(b).astype(np.float64) @ np.abs(a)
    size = np.linalg.norm(bulk, axis=1)
    norm = SPEC.dora_norm(w, b, a, scaling=scaling)
    live = np.where(norm > 0, norm, 1.0)
    # every quotient by the norm is off by what the norm is off by, relative
    swell, factor = 1 + 2 * size / live, np.where(norm > 0, magnitude / live, 1.0)
    reach = np.abs(factor)[:, None] * bulk * swell[:, None]
    n = 2 * k + 2 * r + 12
    length = np.linalg.norm(w.astype(np.float64), axis=1)
    about, options = "a row of zeros", {"scaling": scaling}
    for layout, parts in stored.items():
        turned = reach.T if layout == "transposed" else reach.reshape(parts[0].shape)
        case: tuple[str, str, list[Any], Options, Any, int]
        for case in (
            ("D-1", "dora_magnitude", [parts[0]], {}, length, k + 4),
            ("D-2", "dora_norm", [*parts], options, size, n),
            ("D-4", "dora_weight", [*parts, magnitude], options, turned, n),
        ):
            clause, op, given, more, wanted, rounding = case
            own = {**more, "layout": layout}
            expect = [rules.forward("", getattr(SPEC, op)(*given, **own), wanted, rounding)]
            table.call(clause, f"{layout}, {about}", given, *expect, op=op, **own)
    problem = suite("dora").DoraProblem(
        eighths("D-4w", 3, 6), eighths("D-4b", 3, 2), eighths("D-4a", 2, 6), np.array([-1.5, 0, 2], np.float32), -0.5
    )
    for s in ("linear", "transposed"):
        table.recorded("D-4", "test_weight", f"negative magnitudes, {s}", problem=problem, layout=s)
    dropped = (2 * x * (np.arange(k) % 2)).astype(np.float32)
    arrays = [x, dropped, w, bias, b, a, magnitude]
    total = (np.abs(x) + np.abs(dropped)).astype(np.float64) @ np.abs(w).T + bias
    total = total + np.abs(dropped).astype(np.float64) @ reach.T * 2
    expect = [rules.forward("", SPEC.dora_forward(*arrays, **options), total, n)]
    table.call("D-5", f"every second input dropped, {about}", arrays, *expect, **options)
    arrays = [grad, w, b, a, magnitude]
    inner = (np.abs(grad) * bulk).sum(axis=1) / live
    for clause, detach in (("D-6", True), ("D-6a", False)):
        through = np.abs(grad) if detach else np.abs(grad) + inner[:, None] * bulk / live[:, None]
        spread = np.abs(factor)[:, None] * through * (swell**2)[:, None] * 4
        found = SPEC.dora_gradient(*arrays, scaling=scaling, detach=detach)
        expect = [
            rules.forward("B", found.B, scaling * spread @ np.abs(a).T, n + m),
            rules.forward("A", found.A, scaling * np.abs(b).T @ spread, n + m),
            rules.forward("magnitude", found.magnitude, inner * swell * 2, n + m),
        ]
        table.call(clause, about, arrays, *expect, op="dora_gradient", scaling=scaling, detach=detach)

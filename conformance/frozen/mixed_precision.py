"""Vectors of chapter M: mixed precision."""

from __future__ import annotations

import numpy as np

from .. import laws, rules
from ..recording import Draws
from .inputs import NARROW, SPEC, Table, generator, suite


def build(table: Table) -> None:
    for v, b, r in ((0, 2, 1), (1, 4, 1), (37, 4, 2), (60, 3, 9)):
        table.recorded("M-1", "test_clusters_of_words", f"{v} words, {b} clusters, ratio {r}", v=v, clusters=b, ratio=r)
    _integers(table)
    allocation = suite("mixed_precision").Allocation
    sizes = np.tile(np.arange(1, 5, dtype=np.int32) * 2, (3, 1))
    convex = np.array([[40, 12, 5, 3], [9, 5, 2, 1], [30, 30, 30, 30]], np.float32)
    for b in (6, 11, 14, 24):
        table.recorded("M-2a", "test_convex_errors_reach_the_optimum", f"budget {b}", case=allocation(convex, sizes, b))
    table.recorded("M-2b", "test_equal_slopes", "errors on one line", skip=("error",), dtype=NARROW, blocks=3, widths=3)
    about = "0.1, -2.3, -4.7"
    table.recorded("M-2b", "test_points_on_one_line_keep_their_order", about, skip=("error",), dtype="float64")
    bent = np.array([[100, 0, -1], [5, 4, 3.5], [9, 8, 1]], np.float32) / np.float32(7)
    dear = np.array([[1, 9, 10], [1, 2, 3], [2, 4, 7]], np.int32)
    short = np.array([[55, 45, 15, 10], [46, 41, 7, 7], [28, 25, 22, 4]], np.float32)  # greedy does not reach the best
    wide = np.array([[4, 7, 10, 12], [3, 6, 11, 15], [4, 7, 9, 11]], np.int32)
    for errors, price, budget in (
        (bent, dear, 4),
        (bent, dear, 7),
        (bent, dear, 13),
        (bent, dear, 20),
        (short, wide, 23),
    ):
        found = SPEC.allocate_bits(errors, price, budget=budget)
        size = 2 * float(np.abs(errors.astype(np.float64)).sum())
        best, n = laws.least_error(errors, price, budget), errors.size + 4
        expect = [
            rules.certificate("lower_bound", best, size, n),
            rules.certificate("lower_bound", found.lower_bound, size, n, least=True),
        ]
        table.call("M-2c", f"steps that do not fit, budget {budget}", [errors, price], *expect, budget=budget)
    w = generator("M-3a").integers(-99, 100, (4, 10)).astype(np.float32) / np.float32(16)
    w[3] = 0
    about = "1 to 4 bits, a row of zeros"
    table.recorded("M-3a", "test_projection_of_general_rows", about, w=w, data=Draws([1, 2, 4, 3]))
    for bits in (1, 2):
        for n in (False, True):
            about = f"{bits} bits, negative zeros {n}"
            table.recorded("M-3b", "test_sign_of_zero", about, dtype=NARROW, negative=n, bits=bits)


def _integers(table: Table) -> None:
    """Nothing rounds."""
    counts = np.array([5, 900, 5, 40, 5, 7, 40, 0, 1, 5], np.int32)
    for clusters, ratio in ((1, 1), (3, 1), (3, 2), (4, 4)):
        options = {"clusters": clusters, "ratio": ratio}
        table.exactly("M-1a", f"{clusters} clusters, ratio {ratio}", [counts], **options)
    errors = np.array([[40, 12, 5, 1], [9, 8, 2, 2], [30, 30, 0, -1], [7, 5, 3, 1]], np.float32)
    sizes = np.array([[3, 6, 9, 12], [1, 2, 3, 4], [2, 4, 6, 8], [2, 3, 4, 5]], np.int32)
    for budget in range(8, 30, 3):
        arrays, options = [errors, sizes], {"budget": budget}
        table.exactly("M-2", f"budget {budget}", arrays, "bits", "size", "error", **options)
        bound = SPEC.allocate_bits(*arrays, **options).lower_bound
        table["M-2"][-1]["expect"].append(rules.forward("lower_bound", bound, np.abs(errors).sum(), errors.size))
    table.recorded("M-2", "test_misfits_and_points_above_the_hull", "misfits", skip=("error",), dtype=NARROW)
    w = np.array([[1, -3, 2, -2], [1, -3, 2, -2], [0, 4, 0, -4], [5, 5, 5, 5]], np.float32)
    bits = np.array([1, 2, 3, 2], np.int32)
    table.exactly("M-3", "integers, zeros among them", [w, bits])

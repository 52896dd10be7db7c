"""Vectors of chapter W: diagnostics."""

from __future__ import annotations

import numpy as np

from .. import compare, rules, strategies
from ..recording import Draws
from .inputs import NARROW, SPEC, U32, Array, Options, Table, eighths, generator, near, suite


def build(table: Table) -> None:
    random = generator("W-6")
    few, many = (
        [random.integers(0, top, (2, 4, 4)).astype(np.float32) / np.float32(128) for _ in range(2)] for top in (3, 99)
    )
    for about, m in (("ties", few), ("general", many)):
        for p in ("published", "once"):
            table.recorded("W-6", "test_misordered_pairs", f"{about}, {p}", maps=tuple(m), pairs=p)
    for t in (1, 2, 4):
        for r in ("published", "all"):
            table.recorded("W-7", "test_cover_length", f"top {t}, rows {r}", maps=tuple(many), data=Draws(t, r))
    for top in (1, 2, 3):
        found = SPEC.cover_length(*few, top=top, rows="all")
        table.call("W-7a", f"ties, top {top}", few, rules.exact("", found.astype(np.float32)), top=top, rows="all")
    x = np.array([[1, -3, 0.1], [-0.0, 0, -0.0], [2, 2, 2], [-1, -7, -1]], np.float32)
    table.recorded("W-8", "test_ranges", "equal features, zeros of both signs", x=x)
    maps, w_v, w_o = np.abs(eighths("W-9m", 2, 3, 3)), eighths("W-9v", 4, 5), eighths("W-9o", 3, 4)
    tokens = eighths("W-9x", 3, 5)
    tokens[1], maps[0, :, 2] = 0, 0
    for about, bias in (("without a bias", None), ("with a bias", eighths("W-9b", 4))):
        layer = (maps, tokens, w_v, bias, w_o)
        table.recorded("W-9", "test_norms", f"{about}, a token of zeros, one not attended to", layer=layer)
    _eigenvalues(table)


def _eigenvalues(table: Table) -> None:
    options: Options
    diagnostics = suite("diagnostics")
    random = generator("W-10")
    values = random.integers(-40, 41, (5, 5)) / 8
    matrix = (np.triu(values) + np.triu(values, 1).T).astype(np.float32)
    start = (random.integers(1, 30, (2, 5)) + 100 * np.eye(2, 5)).astype(np.float32)
    for shift, stop in ((0.0, "change"), (-20.0, "residual")):
        options = {"iterations": 1, "shift": shift, "stop": stop}
        found = SPEC.power_eigenvalues(matrix, start, **options)
        allowed = diagnostics.product_error(matrix, U32) + compare.gamma(5 + 8, U32) * abs(shift)
        # unit vectors are off by their own orthogonality, which moves a quotient as far as it moves the product
        moved = 2 * compare.orthogonality(5, U32) * float(np.linalg.norm(matrix.astype(np.float64)))
        drift = compare.orthogonality(5, U32) + compare.tiny(1, NARROW)
        expect = [
            near("value", found.value, np.full(2, allowed + moved)),
            near("residual", found.residual, np.full(2, 2 * allowed + moved)),
            near("vector @ vector.T", np.eye(2), drift),
            near("vector", found.vector, np.full((2, 5), drift)),
        ]
        table.call("W-10", f"one step, shift {shift}", [matrix, start], *expect, **options)
    for s in (1, 2, 5):
        table.recorded("W-10a", "test_power_steps", f"{s} steps", dtype=NARROW, steps=s, seed=1)
    close = np.diag([4, 4, 3.984375, -1, 0.5]).astype(np.float32) / np.float32(16)
    runs: list[tuple[str, Array, Options]] = [
        ("general", matrix, {"iterations": 300, "stop": "residual", "tolerance": strategies.TOLERANCES[1]}),
        ("two equal values and a close one, stopped early", close, {"iterations": 3}),
        ("shifted up", matrix, {"iterations": 300, "shift": 15.0}),
        ("shifted down", matrix, {"iterations": 300, "shift": -15.0}),
    ]
    for about, given, options in runs:
        spectrum = np.linalg.eigvalsh(given.astype(np.float64))
        slack = diagnostics.product_error(given, U32) + compare.gamma(5 + 8, U32) * abs(options.get("shift", 0.0))
        slack = 2 * (slack + compare.weyl(float(np.abs(spectrum).max()), 5, U32)) + compare.tiny(1, NARROW)
        rule = rules.enclosure("value", "residual", spectrum, np.full(2, slack / compare.gamma(1, U32)), 1)
        table.call("W-10b", about, [given, start], rule, **options)
        farthest = spectrum[np.argsort(-np.abs(spectrum - options.get("shift", 0.0)))][:1]
        if options["iterations"] == 300:  # enough for the first, the farthest from the shift
            rule = rules.enclosure("value", "residual", farthest, np.full(1, slack / compare.gamma(1, U32)), 1)
            table.call("W-10b", f"{about}, the first alone", [given, start[:1]], rule, **options)
    table.recorded("W-10c", "test_when_to_stop", "two values")

"""Vectors of chapter O: oscillation."""

from __future__ import annotations

import numpy as np

from .. import rules
from ..recording import Draws
from .inputs import NARROW, SPEC, Table, eighths, generator, suite

EVEN = np.array([[1, -1, 2.25, 3.75], [0, 4, 2, -2], [8, -8, -0.0, 0], [0.5, -0.5, 7.5, -7.5]], np.float32)
"""Rows whose scales are powers of two: nothing rounds."""

ROWS = EVEN + np.float32(0)  # without its negative zero


def build(table: Table) -> None:
    w = generator("O").integers(-99, 100, (3, 6)).astype(np.float32) / np.float32(17)
    w[1, :3], w[2] = [0, -0.0, 6], 0
    for clause, test in (("O-1", "test_codes"), ("O-1a", "test_scale")):
        for bits in (1, 3):
            table.recorded(clause, test, f"{bits} bits, a row of zeros", w=w, bits=bits)
        table.recorded(clause, test, "a stack of two", w=np.stack([w, w[::-1]]), bits=4)
    for b in (1, 2, 3, 4):
        table.recorded("O-1b", "test_values", f"{b} bits, exact scales", w=EVEN, bits=b)
    for bits in (1, 2, 3, 4):
        table.exactly("O-1c", f"{bits} bits", [ROWS], "codes", "scale", bits=bits)
    spread = np.array([[8, -8, 0.5, -0.5, 1, -1, 0, 2]], np.float32)
    for bits in (1, 2, 8):
        table.exactly("O-2", f"{bits} bits", [spread], "codes", bits=bits)
    zeros = np.array([[0, 0], [1, -1]], np.float32)
    table.exactly("O-2a", "the first row", [zeros], bits=2)
    for about, x, slope in (("2 bits", ROWS, ROWS / 2 + 1), ("clipped weights", spread, eighths("O-3", 1, 8))):
        table.call("O-3", about, [x, slope], rules.exact("", slope), bits=2)
    g = eighths("O-3a", 4, 4)
    still = g * (generator("O-5").random((4, 4)) < 0.6)
    for b in (1, 2, 3):
        table.recorded("O-3a", "test_gradient_through_the_scale", f"{b} bits", case=(EVEN, g), bits=b)
    _tracking(table)
    for thresholds in ("all", "occupied"):
        for width in (0.0, 0.25):
            about = f"{thresholds}, range {width}"
            table.recorded(
                "O-5", "test_boundary_statistics", about, case=(EVEN, still), bits=2, width=width, thresholds=thresholds
            )
    for thresholds in ("all", "occupied"):
        for bits in (1, 3):
            about = f"{thresholds}, {bits} bits"
            table.recorded("O-6", "test_mask", about, w=w, bits=bits, width=0.1, thresholds=thresholds)
    _masks(table)
    _steps(table)
    _query_and_key(table)


def _tracking(table: Table) -> None:
    state = SPEC.start_oscillation([0, 1, 2, -1])
    history = np.array([[1, 1, 0, 0], [0, 2, 2, 0], [1, 1, 1, -1]], np.int32)
    for clause, options in (
        ("O-4", {"momentum": 0.5}),
        ("O-4a", {"momentum": 0.5, "threshold": 0.5}),
        ("O-4a", {"momentum": 0.5, "threshold": 0.5, "freeze_to": "current", "targets": "rewritten"}),
    ):
        now = state
        for t, codes in enumerate(history):
            given = [codes, *(np.asarray(a, np.float32) if a.dtype == np.float64 else a for a in now)]
            now = SPEC.track_oscillation(codes, *now, **options)
            expect = [rules.exact(f, getattr(now, f)) for f in now._fields]
            table.call(clause, f"{options}, step {t + 1}", given, *expect, op="track_oscillation", **options)
    table.exactly("O-4", "codes", [np.array([3, -2, 0, 1], np.int32)], op="start_oscillation")
    states = [
        (1, 0, -1, 8, 5, True),
        (0, 1, 1, 0, 3, True),
        (2, 1, -1, 3, 7, False),
        (-1, 0, 1, 4, 1, False),
        (0, 0, 0, 0, 6, True),
    ]
    for f in ("average", "current"):
        for kind in ("held", "rewritten"):
            table.recorded("O-4a", "test_targets", f"{f}, {kind}", state=states, freeze_to=f, targets=kind)
    moves = [(1, 0, -1), (0, 1, 1), (2, 2, 1), (-1, 0, 1), (0, 0, 0), (-3, 3, 1)]
    for m in (0.01, 0.3):
        data = Draws([0, 16, 3, 5, 0, 8], [16, 0, 7, 2, 0, 1])
        table.recorded("O-4b", "test_running_means", f"momentum {m}", codes=moves, momentum=m, dtype=NARROW, data=data)


def _masks(table: Table) -> None:
    for thresholds in ("all", "occupied"):
        for width in (0.0, 0.125, 0.5):
            options = {"bits": 2, "boundary_range": width, "thresholds": thresholds}
            table.exactly("O-6a", f"{options}", [ROWS], **options)
    narrow = np.array([[1, -1, 1, -1], [2, 2, -2, -2]], np.float32)
    for t in ("all", "occupied"):
        for w in (0.0, 0.5):
            about = f"two codes of eight, {t}, range {w}"
            table.recorded("O-6a", "test_ends_of_the_range", about, w=narrow, bits=3, width=w, thresholds=t)


def _steps(table: Table) -> None:
    nothing, options = np.zeros(ROWS.shape, np.bool_), {"step": 3, "lr": 0.5, "decay": 0.25}
    table.call("O-7", "nothing is active", [ROWS, ROWS, ROWS, ROWS**2, nothing], rules.exact("weight", ROWS), **options)
    arrays = (eighths("O-7a", 2, 5), eighths("O-7aa", 2, 5), eighths("O-7ab", 2, 5), np.abs(eighths("O-7ac", 2, 5)))
    on = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 1]], np.bool_)
    adam = {"step": 2, "lr": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 0.125, "decay": 0.1}
    table.recorded("O-7a", "test_active_weights", "active and frozen", case=((*arrays, on), adam))
    table.recorded("O-7a", "test_a_weight_without_gradient_stays", "0 / 0", dtype=NARROW, step=1)


def _query_and_key(table: Table) -> None:
    q, k, g = ROWS[:2] / 2, ROWS[2:] / 4, np.tile(ROWS, (2, 1))
    table.exactly("O-8", "two heads", [q, k], heads=2)
    for freeze in ("product", "none"):
        options = {"heads": 2, "freeze": freeze}
        table.exactly("O-8b", f"freeze={freeze}", [q, k, g, g > 0], **options)
    layers = suite("oscillation").Layer
    shapes = ((2, 3, 4), (4, 4), (4, 4), (6, 4), (4,), (6,))
    layer = layers(*(eighths(f"O-8{i}", *shape, limit=12) for i, shape in enumerate(shapes)), 2)
    layer.x[1, 2] = 0
    grad, mask = eighths("O-8g", 8, 4), generator("O-8m").random((8, 4)) < 0.5
    table.recorded("O-8a", "test_product_gradient", "two heads", case=(layer, grad, mask))
    table.recorded("O-9", "test_attention", "two heads, a token of zeros", layer=layer)
    for b in ("kept", "dropped"):
        table.recorded("O-9a", "test_query_bias", b, layer=layer, biases=b)

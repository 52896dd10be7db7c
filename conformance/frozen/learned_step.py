"""Vectors of chapter S: learned steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import rules
from .inputs import NARROW, SPEC, Table, eighths, generator, suite


def build(table: Table) -> None:
    _first_steps(table)
    _ties(table)
    random = generator("S")
    general, grad = (random.integers(-99, 100, (3, 8)).astype(np.float32) / np.float32(17) for _ in range(2))
    general[1, :3] = [0, -0.0, 99]
    step, offset = np.array([0.3, 1.7, 0.9], np.float32), np.array([0.4, -2.2, 0], np.float32)
    held: dict[str, Any] = {"bits": 3, "signed": True, "axis": 0, "epsilon": 0.0}
    make = suite("learned_step").LearnedStepInput
    with_offset, without = make(general, grad, step, offset, held), make(general, grad, step, None, held)
    unsigned = make(general, grad, step[:1], None, {"bits": 2, "signed": False, "axis": None, "epsilon": 0.5})
    both = [("signed, offsets", with_offset), ("unsigned, one step, raised to epsilon", unsigned)]
    for about, one in both:
        table.recorded("S-2", "test_codes", about, case=one)
    for about, one in both:
        table.recorded("S-2b", "test_the_floor_of_the_step", about, case=one, epsilon=0.5)
    for about, one in both:
        table.recorded("S-3", "test_values", about, case=one)
    low, high = -4, 3
    v = (general.astype(np.float64) - offset[:, None]) / step[:, None]
    if np.min(np.abs(v - low)) < 2.0**-12 or np.min(np.abs(v - high)) < 2.0**-12:
        raise ValueError("S-4: a quotient lies next to an end")
    passed = np.where((v >= low) & (v <= high), grad, np.float32(0))
    table.call("S-4", "inside and outside", [grad, general, step, offset], rules.interval("x", passed, passed), **held)
    for about, one in both:
        table.recorded("S-5", "test_step_gradients", about, case=one)
    table.recorded("S-5a", "test_counts", "elements", case=without, count="elements")
    table.recorded("S-5a", "test_counts", "features", case=unsigned, count="features")
    table.recorded("S-5b", "test_gradients_pass_through_the_floor", "offsets", case=with_offset, epsilon=4.0)
    table.recorded("S-5b", "test_gradients_pass_through_the_floor", "one step", case=unsigned, epsilon=0.5)
    table.recorded("S-6", "test_offset_gradients", "offsets", case=with_offset)
    arrays = [general, step, offset]
    table.call("S-2c", "all rows", arrays, op="lsq", **held)
    table.call("S-2c", "all rows", [grad, *arrays], op="lsq_gradient", **held)
    for i in range(3):
        own = slice(i, i + 1)
        alone = [general[own], step[own], offset[own]]
        about, one, other = f"row {i} alone", rules.same("0", 0, str(i)), rules.same("x.0", 1, f"x.{i}")
        table.call("S-2c", about, alone, one, op="lsq", **held)
        table.call("S-2c", about, [grad[own], *alone], other, op="lsq_gradient", **held)


def _first_steps(table: Table) -> None:
    x = np.arange(-12, 12, dtype=np.float32).reshape(2, 12) / 2 + 7
    first = SPEC.lsq_init(x, bits=3, axis=1)
    table.call("S-1", "a step for every column", [x], rules.forward("step", first.step, first.step, 8), bits=3, axis=1)
    make = suite("learned_step").LearnedStepInput
    v = eighths("S-1", 3, 8)
    v[1] = np.abs(v[1])
    both = (
        ("signed", make(v, v, v[0], None, {"bits": 3, "signed": True, "axis": 0, "epsilon": 0.0})),
        ("unsigned", make(v, v, v[0], None, {"bits": 4, "signed": False, "axis": None, "epsilon": 0.0})),
    )
    for about, case in both:
        for rule in ("mean", "mean-doubled", "deviation", "min-max"):
            table.recorded("S-1", "test_first_steps", f"{rule}, {about}", case=case, rule=rule)
    x = eighths("S-1a", 4, 6)
    x[0], x[2] = 0, -0.0
    for rule in ("mean", "mean-doubled", "deviation", "min-max"):
        about, options = f"rows of zeros of both signs, {rule}", {"bits": 3, "axis": 0, "rule": rule}
        table.exactly("S-1a", about, [x], "step.0", "step.2", **options)


def _ties(table: Table) -> None:
    """Quotients that are multiples of 1/2, ends of the range and beyond."""
    x = np.arange(-12, 12, dtype=np.float32).reshape(2, 12) / 2
    grad = (np.arange(24, dtype=np.float32).reshape(2, 12) - 9) / 4
    arrays = [x, np.array([1, 0.5], np.float32), np.array([0, 0.25], np.float32)]
    options: dict[str, Any] = {"bits": 3, "axis": 0}
    table.exactly("S-2a", "every quotient a multiple of 1/2", arrays, **options)
    halves = np.stack([np.arange(-9, 9)] * 3)
    for s in (True, False):
        table.recorded("S-2a", "test_ties", f"a step of 0.75, signed {s}", x=halves, dtype=NARROW, bits=3, signed=s)
    table.exactly("S-4a", "ends and beyond", [grad, *arrays], **options, count="unscaled")
    for s in (True, False):
        about = f"a quarter beyond, signed {s}"
        table.recorded("S-4a", "test_the_ends_are_inside", about, dtype=NARROW, bits=3, signed=s)

"""Vectors of chapter U: scale tuning."""

from __future__ import annotations

import numpy as np

from .. import rules
from .inputs import NARROW, SPEC, Options, Table, eighths, generator


def build(table: Table) -> None:
    _training(table)
    for bits in (2, 4):
        table.recorded("U-1a", "test_the_lower_of_equal_planes_trains", f"{bits} planes", dtype=NARROW, bits=bits)
    for b in (1, 3, 5):
        table.recorded("U-2b", "test_planes_are_bits", f"{b} planes", dtype=NARROW, bits=b)
    for b, g in ((2, 1), (3, 2)):
        about = f"{b} planes, {g} groups, the last dead"
        table.recorded("U-5b", "test_the_nearest_fit", about, dtype=NARROW, bits=b, groups=g)
    w, c = eighths("U-5a", 3, 4), np.diag([1.0, 2, 4, 8]).astype(np.float32)
    codes = generator("U-5a").integers(0, 4, (3, 4)).astype(np.int32)
    scale = np.array([[[0.3, 0.7]], [[0.1, 0.9]], [[0.2, 0.2]]], np.float32)
    mask = np.array([[[True, True]], [[False, False]], [[True, False]]])
    expect = [rules.exact("1", scale[1]), rules.exact("2.0.1", scale[2, 0, 1])]
    table.call("U-5a", "a row that does not train, and half a row", [w, c, codes, scale, mask], *expect)


def _training(table: Table) -> None:
    """Masks, gradients and a step of training."""
    options: Options
    random = np.random.default_rng(20240230)
    scale = (random.integers(-9, 10, (2, 3, 3)) / 8).astype(np.float32)
    scale[0, 0] = [0.5, -0.5, 0.25]
    for train in ("first", "largest", "all"):
        table.exactly("U-1", f"train={train}", [scale], train=train)
    codes = random.integers(0, 8, (2, 12)).astype(np.int32)
    grad, x, delta = (random.standard_normal(s).astype(np.float32) for s in ((2, 12), (5, 12), (5, 2)))
    whole = np.full_like(codes, 7)
    for norm, size in (("sum", None), ("sum", 4), ("mean", None), ("mean", 4)):
        options = {"bits": 3, "group_size": size, "norm": norm}
        about, count = f"{norm}, group_size={size}", size or 12
        reach = SPEC.scale_grad(np.abs(grad), whole, **options)
        expect = [rules.forward("", SPEC.scale_grad(grad, codes, **options), reach, count + 1)]
        table.call("U-2" if norm == "sum" else "U-2a", about, [grad, codes], *expect, op="scale_grad", **options)
        reach = SPEC.scale_grad_tokens(np.abs(x), np.abs(delta), whole, **options)
        expect = [rules.forward("", SPEC.scale_grad_tokens(x, delta, codes, **options), reach, 5 + count + 2)]
        table.call("U-3", about, [x, delta, codes], *expect, **options)
    state = [(random.integers(1, 30, scale.shape) / 8).astype(np.float32) for _ in range(4)]
    arrays = [scale, *state, SPEC.trainable_scales(scale)]
    options = {"step": 2, "lr": 0.125, "epsilon": 0.125, "decay": 0.25}
    found = SPEC.tune_step(*arrays, **options)
    parts = [rules.forward(f, getattr(found, f), np.abs(getattr(found, f)) + 8, 16) for f in found._fields]
    table.call("U-4", "plane 0 trains", arrays, *parts, **options)
    table.recorded("U-4", "test_a_scale_without_gradient_stays", "0 / 0", dtype=NARROW, step=1)
    arrays[-1] = np.zeros(scale.shape, np.bool_)
    table.exactly("U-4a", "nothing trains", arrays, **options)

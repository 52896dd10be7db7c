"""Vectors of chapter G: second-order compression."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import laws, rules, strategies
from .inputs import (
    NARROW,
    SPEC,
    Array,
    Options,
    Table,
    clear,
    first_draws,
    fractions,
    generator,
    hessian,
    near,
    settled,
    steady,
    suite,
    unit_rows,
)


def build(table: Table) -> None:
    _first(table)
    _decisions(table)
    _pruning(table)


def _first(table: Table) -> None:
    drawn = first_draws()
    w, h, power = drawn.w, drawn.h, drawn.power
    swell = math.ceil(4 * 8 * laws.damped(h, 0.01).kappa)  # inverse_sensitivity as a number of roundings
    factor = SPEC.inverse_cholesky(h)
    bulk = np.linalg.norm(factor.factor)
    expect = [rules.forward("factor", factor.factor, bulk, swell * 4), rules.exact("dead", factor.dead)]
    table.call("G-1", "well-conditioned", [h], *expect)

    # The full symmetric grid has its largest magnitude at a tie, (2^b − 1)/2 steps: above 0 both codes end as one.
    w = w * np.where(w.max(axis=1, keepdims=True) < -w.min(axis=1, keepdims=True), -1, 1).astype(w.dtype)

    def case(clause: str, about: str, **options: Any) -> None:
        found = SPEC.gptq(w, h, **options)
        decided = (rules.exact(field, getattr(found, field)) for field in ("codes", "group_index", "zero_point"))
        scale = rules.forward("scale", found.scale, found.scale, swell)
        loss = rules.forward("loss", found.loss, found.loss, swell * 8)
        table.call(clause, about, [w, h], *decided, scale, loss, **options)

    groups: Options = {"bits": 4, "group_size": 4, "act_order": True}
    case("G-2", "rows", bits=3)
    case("G-2", "rows, symmetric", bits=4, scheme="symmetric-full")
    case("G-3b", "act-order, groups", **groups)
    case("G-3a", "act-order, static groups", **groups, static_groups=True)
    for s in ("current", "block"):
        case("G-4", f"groups, {s}", bits=3, group_size=4, group_scales=s, block_size=8)
    sparse = SPEC.sparsegpt(w, h)
    kept = rules.forward("weight", sparse.weight, np.abs(w).max() + np.abs(sparse.weight), swell)
    table.call("G-5", "2:4", [w, h], rules.exact("mask", sparse.mask), kept)
    white, squares = np.sign(w).astype(np.float32), np.array([1, 4, 1, 4, 1, 1, 4, 4], np.float32)
    table.exactly("G-5a", "equal saliencies", [white, np.eye(8, dtype=np.float32)], "mask")
    table.exactly("G-6", "2:4", [w, power], "mask", "weight")
    table.exactly("G-6a", "tied scores", [white, squares], "mask")


def _decisions(table: Table) -> None:
    h = np.diag([0.0, 3.0, 0.0, 0.0]).astype(np.float32)
    found = SPEC.inverse_cholesky(h, damping=2.0)
    expect = [rules.exact("dead", found.dead), *(rules.exact(f"factor.{i}", found.factor[i]) for i in (0, 2, 3))]
    table.call("G-1a", "three dead columns, damping 2", [h], *expect, damping=2.0)
    second = suite("second_order")
    h, kit = hessian("G-2a", 8), second.Kit(SimpleNamespace(compute_dtype=NARROW))
    w = unit_rows("G-2a", 3, 8)
    options = {"bits": 3}
    found = SPEC.gptq(w, h, **options)
    steady(lambda v: SPEC.gptq(v, h, **options).codes, w, "G-2a")
    run = second.replay(kit, strategies.WeightProblem(w, h, 0.01), found.weight.astype(np.float32))
    about = "scales that are exact"
    table.call("G-2a", about, [w, h], near("loss", found.loss, second.loss_bound(kit, run)), **options)
    ranged = w.copy()
    ranged[:, 4], ranged[:, 5] = -3, 4
    static: dict[str, Any] = {"bits": 3, "group_size": 4, "act_order": True, "static_groups": True}
    tight = hessian("G-2b", 8, 4)
    ranged = settled(
        "G-2b",
        lambda r: np.where(np.arange(8) % 4 < 2, ranged, r.integers(-350, 351, ranged.shape) / 128).astype(np.float32),
        lambda v: SPEC.gptq(v, tight, **static).codes,
    )
    found = SPEC.gptq(ranged, tight, **static)
    expect = [clear("codes", found.codes), rules.forward("weight", found.weight, np.abs(found.weight), 1)]
    table.call("G-2b", "scales that are exact, visited in another order", [ranged, tight], *expect, **static)
    small = np.where(np.arange(8) < 2, w, generator("G-2b").integers(-50, 51, w.shape) / 128).astype(np.float32)
    found = SPEC.gptq(small, h, **options)
    steady(lambda v: SPEC.gptq(v, h, **options).codes, small, "G-2b")
    expect = [clear("codes", found.codes), rules.forward("weight", found.weight, np.abs(found.weight), 1)]
    table.call("G-2b", "weights that become 0", [small, h], *expect, **options)
    dead_h, free = h.copy(), w.copy()
    dead_h[5], dead_h[:, 5], free[:, 5] = 0, 0, [18, -17, 4]
    dead_w = settled(
        "G-2c",
        lambda r: np.where(np.isin(np.arange(8), (0, 1, 5)), free, r.integers(-350, 351, w.shape) / 128).astype(
            np.float32
        ),
        lambda v: SPEC.gptq(v, dead_h, **options).codes,
    )
    gone = SPEC.gptq(dead_w, dead_h, **options)
    expect = [
        clear("codes", gone.codes),
        clear("zero_point", gone.zero_point),
        rules.forward("scale", gone.scale, gone.scale, 4),
        rules.exact("weight.T.5", np.zeros(3)),
    ]
    table.call("G-2c", "a dead column that holds extremes", [dead_w, dead_h], *expect, **options)
    for d in ([3, 1, 3, 0, 3, 1], [2, 2, 2], [0, 1, 0, 4]):
        table.recorded("G-3", "test_order_of_columns", f"diagonal {d}", diagonal=d, dtype=NARROW)
    clipped = {"bits": 3, "clip_search": True}
    found, own = SPEC.gptq(w, h, **clipped), SPEC.clip_search(w, bits=3)
    steady(
        lambda v: np.concatenate([*SPEC.gptq(v, h, **clipped)[:1], SPEC.clip_search(v, bits=3).step], axis=1), w, "G-4a"
    )
    expect = [
        rules.forward("scale", own.scale, own.scale, 6),
        clear("zero_point", own.zero_point),
        clear("codes", found.codes),
    ]
    table.call("G-4a", "rows", [w, h], *expect, op="gptq", **clipped)


def _pruning(table: Table) -> None:
    w, tight = unit_rows("G-2a", 3, 8), hessian("G-2b", 8, 4)
    sparse: dict[str, Any] = {"bits": 3}
    w = settled(
        "G-5b",
        lambda r: np.where(np.arange(8) < 2, w, r.integers(-350, 351, w.shape) / 128).astype(np.float32),
        lambda v: _pruned(SPEC.sparsegpt(v, tight, **sparse)),
    )
    found = SPEC.sparsegpt(w, tight, **sparse)
    grouped: dict[str, Any] = {"bits": 3, "group_size": 4}
    free = settled("G-5b", fractions(350, 128, *w.shape), lambda v: _pruned(SPEC.sparsegpt(v, tight, **grouped)))
    expect = [
        rules.exact("mask", SPEC.sparsegpt(free, tight, **grouped).mask),
        clear("codes", SPEC.sparsegpt(free, tight, **grouped).codes),
    ]
    table.call("G-5b", "2:4, groups of 4", [free, tight], *expect, **grouped)
    expect = [
        rules.exact("mask", found.mask),
        clear("codes", found.codes),
        rules.forward("scale", found.scale, found.scale, 4),
        rules.forward("weight", found.weight, np.abs(found.weight), 5),
    ]
    table.call("G-5b", "2:4, rows", [w, tight], *expect, **sparse)
    tokens = generator("G-2").integers(-3, 4, (24, 8)).astype(np.float64)
    h = (tokens.T @ tokens + 4 * np.eye(8)).astype(np.float32)
    blocked: Options = {"bits": 3, "block_size": 3}
    w = settled("G-2", fractions(350, 128, 3, 8), lambda v: SPEC.gptq(v, h, **blocked).codes)
    table.call("G-2", "blocks of 3 columns", [w, h], clear("codes", SPEC.gptq(w, h, **blocked).codes), **blocked)
    power = np.diag(np.ldexp(1.0, [0, 5, 2, 7, 1, 6, 3, 4])).astype(np.float32)
    for about, c, keep in (("2:4, strong correlation", h, 2), ("1:4, inputs of different power", power, 1)):
        options = {"keep": keep, "of": 4}
        w = settled(
            "G-5", fractions(350, 128, 3, 8), lambda v, c, options: SPEC.sparsegpt(v, c, **options).mask, c, options
        )
        table.call("G-5", about, [w, c], rules.exact("mask", SPEC.sparsegpt(w, c, **options).mask), **options)
    signs = np.array([[1, -1, -1, 1, 1, 1, -1, 1], [2, -2, 1, -1, -1, 2, 1, -2]], np.float32)
    for keep in (1, 2, 3):
        table.exactly("G-6a", f"equal scores, {keep}:4", [signs, np.ones(8, np.float32)], "mask", keep=keep, of=4)


def _pruned(found: Any) -> Array:
    """Decisions of a pruning that quantizes."""
    return np.concatenate([found.codes, found.mask], axis=1)

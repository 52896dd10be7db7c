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
    Case,
    Options,
    Table,
    call,
    clear,
    exactly,
    first_draws,
    generator,
    hessian,
    near,
    recorded,
    settled,
    steady,
    suite,
    unit_rows,
)

__all__ = ["build"]


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
    table["G-1"] = [call("inverse_cholesky", "well-conditioned", [h], {}, expect)]

    def case(about: str, **options: Any) -> Case:
        found = SPEC.gptq(w, h, **options)
        return call(
            "gptq",
            about,
            [w, h],
            options,
            [
                rules.exact("codes", found.codes),
                rules.exact("group_index", found.group_index),
                rules.exact("zero_point", found.zero_point),
                rules.forward("scale", found.scale, found.scale, swell),
                rules.forward("loss", found.loss, found.loss, swell * 8),
            ],
        )

    groups: Options = {"bits": 4, "group_size": 4, "act_order": True}
    table["G-2"] = [case("rows", bits=3), case("rows, symmetric", bits=4, scheme="symmetric-full")]
    table["G-3b"] = [case("act-order, groups", **groups)]
    table["G-3a"] = [case("act-order, static groups", **groups, static_groups=True)]
    table["G-4"] = [
        case(f"groups, {s}", bits=3, group_size=4, group_scales=s, block_size=8) for s in ("current", "block")
    ]
    sparse = SPEC.sparsegpt(w, h)
    kept = rules.forward("weight", sparse.weight, np.abs(w).max() + np.abs(sparse.weight), swell)
    table["G-5"] = [call("sparsegpt", "2:4", [w, h], {}, [rules.exact("mask", sparse.mask), kept])]
    white, squares = np.sign(w).astype(np.float32), np.array([1, 4, 1, 4, 1, 1, 4, 4], np.float32)
    table["G-5a"] = [exactly("sparsegpt", "equal saliencies", [white, np.eye(8, dtype=np.float32)], {}, "mask")]
    table["G-6"] = [exactly("wanda", "2:4", [w, power], {}, "mask", "weight")]
    table["G-6a"] = [exactly("wanda", "tied scores", [white, squares], {}, "mask")]


def _decisions(table: Table) -> None:
    options: Options
    h = np.diag([0.0, 3.0, 0.0, 0.0]).astype(np.float32)
    found = SPEC.inverse_cholesky(h, damping=2.0)
    table["G-1a"] = [
        call(
            "inverse_cholesky",
            "three dead columns, damping 2",
            [h],
            {"damping": 2.0},
            [rules.exact("dead", found.dead), *(rules.exact(f"factor.{i}", found.factor[i]) for i in (0, 2, 3))],
        )
    ]
    second = suite("second_order")
    h, kit = hessian("G-2a", 8), second.Kit(SimpleNamespace(compute_dtype=NARROW))
    w = unit_rows("G-2a", 3, 8)
    options = {"bits": 3}
    found = SPEC.gptq(w, h, **options)
    steady(lambda v: SPEC.gptq(v, h, **options).codes, w, "G-2a")
    run = second.replay(kit, strategies.WeightProblem(w, h, 0.01), found.weight.astype(np.float32))
    table["G-2a"] = [
        call("gptq", "scales that are exact", [w, h], options, [near("loss", found.loss, second.loss_bound(kit, run))])
    ]
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
    table["G-2b"] = [
        call(
            "gptq",
            "scales that are exact, visited in another order",
            [ranged, tight],
            static,
            [clear("codes", found.codes), rules.forward("weight", found.weight, np.abs(found.weight), 1)],
        )
    ]
    small = np.where(np.arange(8) < 2, w, generator("G-2b").integers(-50, 51, w.shape) / 128).astype(np.float32)
    found = SPEC.gptq(small, h, **options)
    steady(lambda v: SPEC.gptq(v, h, **options).codes, small, "G-2b")
    table["G-2b"].append(
        call(
            "gptq",
            "weights that become 0",
            [small, h],
            options,
            [clear("codes", found.codes), rules.forward("weight", found.weight, np.abs(found.weight), 1)],
        )
    )
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
    table["G-2c"] = [
        call(
            "gptq",
            "a dead column that holds extremes",
            [dead_w, dead_h],
            options,
            [
                clear("codes", gone.codes),
                clear("zero_point", gone.zero_point),
                rules.forward("scale", gone.scale, gone.scale, 4),
                rules.exact("weight.T.5", np.zeros(3)),
            ],
        )
    ]
    recorded(
        table,
        "G-3",
        "test_order_of_columns",
        *((f"diagonal {d}", {"diagonal": d, "dtype": NARROW}) for d in ([3, 1, 3, 0, 3, 1], [2, 2, 2], [0, 1, 0, 4])),
    )
    clipped = {"bits": 3, "clip_search": True}
    found, own = SPEC.gptq(w, h, **clipped), SPEC.clip_search(w, bits=3)
    steady(
        lambda v: np.concatenate([*SPEC.gptq(v, h, **clipped)[:1], SPEC.clip_search(v, bits=3).step], axis=1), w, "G-4a"
    )
    table["G-4a"] = [
        call(
            "gptq",
            "rows",
            [w, h],
            clipped,
            [
                rules.forward("scale", own.scale, own.scale, 6),
                clear("zero_point", own.zero_point),
                clear("codes", found.codes),
            ],
        )
    ]


def _pruning(table: Table) -> None:
    options: Options
    w, tight = unit_rows("G-2a", 3, 8), hessian("G-2b", 8, 4)
    sparse: dict[str, Any] = {"bits": 3}
    w = settled(
        "G-5b",
        lambda r: np.where(np.arange(8) < 2, w, r.integers(-350, 351, w.shape) / 128).astype(np.float32),
        lambda v: _pruned(SPEC.sparsegpt(v, tight, **sparse)),
    )
    found = SPEC.sparsegpt(w, tight, **sparse)
    grouped: dict[str, Any] = {"bits": 3, "group_size": 4}
    free = settled(
        "G-5b",
        lambda r: (r.integers(-350, 351, w.shape) / 128).astype(np.float32),
        lambda v: _pruned(SPEC.sparsegpt(v, tight, **grouped)),
    )
    table["G-5b"] = [
        call(
            "sparsegpt",
            "2:4, groups of 4",
            [free, tight],
            grouped,
            [
                rules.exact("mask", SPEC.sparsegpt(free, tight, **grouped).mask),
                clear("codes", SPEC.sparsegpt(free, tight, **grouped).codes),
            ],
        )
    ]
    table["G-5b"] += [
        call(
            "sparsegpt",
            "2:4, rows",
            [w, tight],
            sparse,
            [
                rules.exact("mask", found.mask),
                clear("codes", found.codes),
                rules.forward("scale", found.scale, found.scale, 4),
                rules.forward("weight", found.weight, np.abs(found.weight), 5),
            ],
        )
    ]
    tokens = generator("G-2").integers(-3, 4, (24, 8)).astype(np.float64)
    h = (tokens.T @ tokens + 4 * np.eye(8)).astype(np.float32)
    blocked: Options = {"bits": 3, "block_size": 3}
    w = settled(
        "G-2",
        lambda r: (r.integers(-350, 351, (3, 8)) / 128).astype(np.float32),
        lambda v: SPEC.gptq(v, h, **blocked).codes,
    )
    table["G-2"] += [
        call("gptq", "blocks of 3 columns", [w, h], blocked, [clear("codes", SPEC.gptq(w, h, **blocked).codes)])
    ]
    power = np.diag(np.ldexp(1.0, [0, 5, 2, 7, 1, 6, 3, 4])).astype(np.float32)
    for about, c, keep in (("2:4, strong correlation", h, 2), ("1:4, inputs of different power", power, 1)):
        options = {"keep": keep, "of": 4}
        w = settled(
            "G-5",
            lambda r: (r.integers(-350, 351, (3, 8)) / 128).astype(np.float32),
            lambda v, c, options: SPEC.sparsegpt(v, c, **options).mask,
            c,
            options,
        )
        table["G-5"].append(
            call("sparsegpt", about, [w, c], options, [rules.exact("mask", SPEC.sparsegpt(w, c, **options).mask)])
        )
    signs = np.array([[1, -1, -1, 1, 1, 1, -1, 1], [2, -2, 1, -1, -1, 2, 1, -2]], np.float32)
    for keep in (1, 2, 3):
        options = {"keep": keep, "of": 4}
        about = f"equal scores, {keep}:4"
        table["G-6a"].append(exactly("wanda", about, [signs, np.ones(8, np.float32)], options, "mask"))


def _pruned(found: Any) -> Array:
    """Decisions of a pruning that quantizes."""
    return np.concatenate([found.codes, found.mask], axis=1)

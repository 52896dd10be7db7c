"""Vectors of chapters G, C, E, K, D and H: second-order compression, patches, ranks, DoRA and rotation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from lowbit.reference.types import DecoderBlock

from .. import compare, laws, rules, strategies
from ..hexfloat import decode
from .inputs import (
    NARROW,
    SPEC,
    U32,
    U64,
    Array,
    Options,
    Table,
    call,
    clear,
    eighths,
    generator,
    near,
    recorded,
    settled,
    steady,
    suite,
)

__all__ = ["dora", "low_rank", "ranks", "rotation", "second_order"]


def _hessian(clause: str, k: int, load: float = 40) -> Array:
    tokens = generator(clause).integers(-3, 4, (3 * k, k)).astype(np.float64)
    return (tokens.T @ tokens + load * np.eye(k)).astype(np.float32)


def _unit_rows(clause: str, m: int, k: int) -> Array:
    """Rows from -3 to 4 in hundredths of a kind: with three bits their scale is 1 exactly, their zero point 3."""
    w = generator(clause).integers(-350, 351, (m, k)) / 128
    w[:, 0], w[:, 1] = -3, 4
    return w.astype(np.float32)


def second_order(table: Table) -> None:
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
    h, kit = _hessian("G-2a", 8), second.Kit(SimpleNamespace(compute_dtype=NARROW))
    w = _unit_rows("G-2a", 3, 8)
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
    tight = _hessian("G-2b", 8, 4)
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
    sparse = {"bits": 3}
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


def _pruned(found: Any) -> Array:
    """Decisions of a pruning that quantizes."""
    return np.concatenate([found.codes, found.mask], axis=1)


def low_rank(table: Table) -> None:
    x = generator("C-1a").integers(-9999, 10000, (6, 4)).astype(np.float64)
    (node,) = SPEC.moment_leaf(x, index=3)
    table["C-1a"] = [
        call(
            "moment_leaf",
            "integers",
            [x],
            {"index": 3},
            [
                rules.exact("0.sum", node.sum),
                rules.exact("0.sum.T", node.sum),
                rules.exact("0.magnitude", node.magnitude),
            ],
        )
    ]
    d = generator("C-4a").integers(-9, 10, (4, 6)).astype(np.float32)
    d[3] = d[2]  # rank 3
    sigma = np.linalg.svd(d.astype(np.float64), compute_uv=False)
    slip = compare.weyl(float(sigma[0]), 4 * 6, U32) + compare.tiny(d.size, NARROW)
    table["C-4a"] = []
    for split in ("balanced", "left"):
        grams: tuple[tuple[str, Array, Any], ...] = (
            ("B.T @ B", np.diag(sigma[:2]), slip),
            ("A @ A.T", np.diag(sigma[:2]), slip),
        )
        if split == "left":
            wide = 2 * slip * sigma[0] + slip**2
            grams = (("B.T @ B", np.diag(sigma[:2] ** 2), wide), ("A @ A.T", np.eye(2), compare.gamma(4 * 6, U32)))
        table["C-4a"].append(call("svd_patch", split, [d], {"rank": 2, "split": split}, [near(*g) for g in grams]))
    channel = np.array([1, 0, 4, 0.5, 3, 0], np.float32)
    table["C-5a"] = [
        call(
            "scaled_svd_patch",
            f"two channels of scale 0, {split}",
            [d, channel],
            {"rank": 2, "split": split},
            [rules.exact(f"A.T.{i}", np.zeros(2)) for i in (1, 5)],
        )
        for split in ("balanced", "left")
    ]
    _patches(table, d)


def _patches(table: Table, d: Array) -> None:
    options: Options
    eigen = suite("eigenspace")
    few = generator("E").integers(-3, 4, (3, 6)).astype(np.float64)
    singular, full = (few.T @ few).astype(np.float32), _hessian("E-2a", 6, 10)
    wide, slip = d.astype(np.float64), compare.gamma(4 * 6, U32)
    table["E-2a"], table["K-11b"], table["E-5"] = [], [], []
    for about, c in (("full rank", full), ("rank 3", singular)):
        squares = laws.squared_spectrum(d, c)
        patch = SPEC.eora(d, c, rank=2, split="left")
        size = np.abs(patch.B) @ (np.abs(patch.B).T @ np.abs(wide))
        off = eigen.gap(d, c, 1, U32)
        gap = squares[1] - squares[2]
        turn = compare.davis_kahan(gap / eigen.size_of(d, c), 3 * 6 + 2, U32) * float(np.linalg.norm(wide))
        if about == "full rank":  # the subspace is determined, and so is the product
            table["E-2a"].append(
                call(
                    "eora",
                    f"{about}, left",
                    [d, c],
                    {"rank": 2, "split": "left"},
                    [near("B.T @ B", np.eye(2), slip), near("B @ A", patch.B @ patch.A, 2 * slip * size + turn)],
                )
            )
        quarter = np.diag(np.sqrt(squares[:2]))
        table["E-2a"].append(
            call(
                "eora",
                f"{about}, balanced",
                [d, c],
                {"rank": 2},
                [near("B.T @ B", quarter, (off + 4 * slip * squares[0]) / np.sqrt(squares[1]))],
            )
        )
        norm = float(np.sum(wide**2) * np.linalg.norm(np.abs(c.astype(np.float64)), 2))
        nested = [{**rules.objective(d, c, laws.optimum(d, c, r), norm), "rank": r} for r in (1, 2, 3)]
        table["K-11b"].append(call("eora", about, [d, c], {"rank": 3}, nested))
        judge = compare.gram_gap(eigen.size_of(d, c), 2, 6, U64) + compare.tiny(d.size, NARROW)
        table["E-5"].append(
            call(
                "eora_certified",
                about,
                [d, c],
                {"rank": 2},
                [rules.certificate("lower_bound", laws.optimum(d, c, 2), judge / compare.gamma(1, U32), 1)],
            )
        )
    table["E-4a"] = []
    c, repaired = 4 * np.eye(6), 4 * np.eye(6)
    c[0, 1] = c[1, 0] = 5
    repaired[:2, :2] = np.array([[13, 5], [5, 13]]) / 2
    root = laws.root(repaired)
    tail = float(np.linalg.norm(np.linalg.svd(wide @ root, compute_uv=False)[2:]))
    values = np.linalg.eigvalsh(repaired)
    allowed = compare.residual_gap(
        float(np.linalg.norm(wide) * np.linalg.norm(root, 2)), 12, U32, float(np.sqrt(values[-1] / values[0]))
    )
    table["E-4a"].append(
        call(
            "eora_published",
            "an eigenvalue of -1 becomes 4",
            [d, c.astype(np.float32)],
            {"rank": 2, "policy": "nvlabs"},
            [rules.residual(d, root, tail, (allowed + compare.tiny(d.size, NARROW)) / compare.gamma(1, U32), 1)],
        )
    )
    holed = np.diag([1.0, 2, 0, 3, 5, 0]).astype(np.float32)
    table["E-4b"] = [
        call(
            "eora_published",
            "two zeros, truncated",
            [d, holed],
            {"rank": 2, "policy": "truncate"},
            [rules.exact(f"A.T.{i}", np.zeros(2)) for i in (2, 5)],
        )
    ]
    recorded(
        table,
        "E-6",
        "test_stationarity",
        ("a patch of integers", {"problem": strategies.PatchProblem(d, full, 2), "best": False, "seed": 1}),
    )
    b, a = _unit_rows("E-7b", 3, 4), _unit_rows("E-7a", 4, 8)
    options = {"bits": 3, "method": "rtn", "group_size": None}
    found = SPEC.quantize_adapter(b, a, _hessian("E-7", 8), **options)
    expect = []
    for name in ("A", "B"):
        part = getattr(found, name)
        expect += [
            rules.codes(f"{name}.codes", part.codes, {"A": a, "B": b}[name], 2),
            rules.forward(f"{name}.scale", part.scale, part.scale, 4),
            clear(f"{name}.zero_point", part.zero_point),
            rules.exact(f"{name}.group_index", part.group_index),
            rules.forward(f"{name}.weight", part.weight, np.abs(part.weight), 5),
        ]
    table["E-7"] = [call("quantize_adapter", "rounded, whole rows", [b, a, _hessian("E-7", 8)], options, expect)]
    moment = _hessian("E-7", 8, 2)
    for method, size in (("gptq", None), ("gptq", 3), ("rtn", 3)):
        options = {"bits": 3, "method": method, "group_size": size}

        def both(v: Array, options: Options) -> Array:
            found = SPEC.quantize_adapter(v[4:, :4], v[:4], moment, **options)
            return np.concatenate([found.A.codes.ravel(), found.B.codes.ravel()])

        whole = settled(
            "E-7",
            lambda r: np.where(np.arange(8) < 2, [-3, 4] * 4, r.integers(-350, 351, (7, 8)) / 128).astype(np.float32),
            both,
            options,
        )
        found = SPEC.quantize_adapter(whole[4:, :4], whole[:4], moment, **options)
        expect = []
        for name in ("A", "B"):
            part = getattr(found, name)
            expect += [
                clear(f"{name}.codes", part.codes),
                rules.forward(f"{name}.scale", part.scale, part.scale, 4),
                rules.exact(f"{name}.group_index", part.group_index),
            ]
        about = f"{method}, groups of {size}, which do not fit" if size else f"{method}, whole rows"
        table["E-7"].append(call("quantize_adapter", about, [whole[4:, :4].copy(), whole[:4], moment], options, expect))
    eigen, rows = suite("eigenspace"), eighths("E-8", 3, 6)
    moment = _hessian("E-8", 6, 2)
    holes = np.diag([4.0, 0, 9, 1, 0, 2]).astype(np.float32)
    recorded(
        table,
        "E-8",
        "test_residual_moment",
        ("rows in general", {"reach": eigen.Reach(moment, rows)}),
        (
            "one row twice, one of zeros",
            {"reach": eigen.Reach(moment, np.concatenate([rows, rows[:1] * -4, 0 * rows[:1]]))},
        ),
        ("channels, two of them dead", {"reach": eigen.Reach(holes, np.eye(6, dtype=np.float32)[:3] * 3)}),
    )
    dead = np.zeros(6, np.float32)
    alive = [rules.interval(f"{i}.{i}", np.float64(2.0**-60), np.float64(1.0)) for i in (0, 2)]
    table["E-8a"] = [
        call(
            "residual_moment",
            "channels restored in full, two of them dead",
            [holes, np.eye(6, dtype=np.float32)[:3] * 3],
            {},
            [rules.exact("1", dead), rules.exact("4", dead), rules.exact("T.4", dead), *alive],
        )
    ]


def ranks(table: Table) -> None:
    make = strategies.RankProblem
    spectra = np.array([[5, 4, 2, 1], [5, 4, 2, 1], [3, 3, 3, 3], [0, 0, 0, 0], [7, 0, 0, 0]], np.float32) / np.float32(
        7
    )
    importance = np.array([1, 3, 2, 1, 0], np.float32)
    cost, low, high = (np.array(v, np.int32) for v in ([2, 2, 3, 1, 4], [0, 0, 1, 0, 0], [4, 4, 4, 4, 3]))
    problem = make(spectra, importance, cost, low, high, 12, 1)
    recorded(
        table,
        "K-1a",
        "test_residual_damage",
        *((f"no energy at all: {dark}", {"problem": problem, "dark": dark}) for dark in (False, True)),
    )
    recorded(table, "K-3", "test_gradient_importance", ("eighths", {"gradient": eighths("K-3", 3, 5)}))
    recorded(
        table,
        "K-3a",
        "test_loss_importance",
        ("a loss below the base, a module without error", {"problem": problem, "base": 24}),
    )
    recorded(
        table,
        "K-6",
        "test_threshold_ranks",
        *((f"threshold {t}", {"problem": problem, "threshold": t}) for t in (0.0, 0.25, 0.5, 0.9, 1.0)),
    )
    recorded(
        table,
        "K-6",
        "test_threshold_is_met_by_equality",
        *((f"{e} eighths", {"problem": problem, "eighths": e}) for e in (0, 3, 8)),
    )
    weights, prices = np.array([1, 2, 0.7, 0.3], np.float32), np.array([2, 3, 2, 1], np.int32)
    least, most = np.zeros(4, np.int32), np.full(4, 6, np.int32)
    purchases = [(0, 1), (5, 1), (11, 1), (17, 1), (24, 2), (31, 2), (18, 3), (36, 3), (99, 1)]

    def falling(random: np.random.Generator) -> Array:
        return np.asarray(-np.sort(-random.integers(1, 99, (4, 6)), axis=1), np.float32) / np.float32(7)

    for clause, op, rest in (
        ("K-5", "allocate_greedy", [weights, prices, least, most]),
        ("K-6a", "allocate_threshold", [prices, least, most]),
        ("K-7", "allocate_proportional", [prices, least, most]),
    ):

        def bought(v: Array, op: str = op, rest: list[Array] = rest) -> Array:
            return np.array(
                [getattr(SPEC, op)(v, *rest, budget=budget, multiple=multiple) for budget, multiple in purchases]
            )

        first = settled(
            clause,
            falling if clause != "K-7" else lambda r: r.integers(1, 99, 4).astype(np.float32) / np.float32(40),
            bought,
        )
        table[clause] = [
            call(
                op,
                f"budget {budget}, multiples of {multiple}",
                [first, *rest],
                {"budget": budget, "multiple": multiple},
                [clear("", found)],
            )
            for (budget, multiple), found in zip(purchases, bought(first).astype(np.int32), strict=True)
        ]
    w = generator("K-2").integers(-9, 10, (4, 6)).astype(np.float32)
    w_hat, c = np.round(w / 2).astype(np.float32), _hessian("K-2", 6, 10)
    ranks = suite("rank_budget")
    (left, turned), (right, turned_hat) = ranks.leading(w, c, U32), ranks.leading(w_hat, c, U32)
    expected = [float(np.sum((left[:, :r].T @ right[:, :r]) ** 2)) / r for r in (1, 2, 3, 4)]
    allowed = [float(turned[r - 1] + turned_hat[r - 1]) + ranks.both(2 * 4 + r + 2, U32) for r in (1, 2, 3, 4)]
    table["K-2"] = [
        call(
            "subspace_overlap",
            "halved and rounded",
            [w, w_hat, c],
            {"rank": 4},
            [near("", np.array(expected), np.array(allowed))],
        )
    ]
    pooled = np.array([[8, 4, 0, 0], [6, 3, 0, 0], [5, 1, 0, 0]], np.float32)
    arrays = [
        pooled,
        np.array([1, 1, 4], np.float32),
        *(np.array(v, np.int32) for v in ([2, 3, 5], [0, 1, 0], [3, 4, 2])),
    ]
    group = np.array([0, 0, 1], np.int32)
    found = SPEC.pool_modules(*arrays, group)
    table["K-9"] = [
        call(
            "pool_modules",
            "two of three share a rank",
            [*arrays, group],
            {},
            [
                rules.forward("spectra", found.spectra, found.spectra, 3 + 4),
                *(rules.exact(name, getattr(found, name)) for name in ("cost", "low", "high")),
            ],
        )
    ]
    b, a, moment = eighths("K-11b", 5, 3), eighths("K-11a", 3, 6), _hessian("K-11", 6, 10)
    product = b.astype(np.float64) @ a.astype(np.float64)
    norm = ranks.nested_size(b, a, moment)
    best = [{**rules.objective(product, moment, laws.optimum(product, moment, r), norm), "rank": r} for r in (1, 2, 3)]
    table["K-11"] = [
        call("nest_patch", split, [b, a, moment], {"split": split}, best) for split in ("balanced", "left")
    ]
    size = float(np.linalg.norm(b.astype(np.float64)) * np.linalg.norm(a.astype(np.float64)))
    allowed_product = (
        compare.residual_gap(size, 12, U32) + compare.residual_gap(size, 12, U64) + compare.tiny(30, NARROW)
    )
    squares, slip = laws.squared_spectrum(product, moment)[:3], compare.gamma(4 * 6, U32)
    off = compare.gram_gap(norm, 1, 12, U32) + compare.gram_gap(norm, 1, 12, U64)
    grams = {
        "left": near("B.T @ B", np.eye(3), slip),
        "balanced": near("B.T @ B", np.diag(np.sqrt(squares)), (off + 4 * slip * squares[0]) / np.sqrt(squares[-1])),
    }
    table["K-11a"] = [
        call(
            "nest_patch",
            split,
            [b, a, moment],
            {"split": split},
            [near("B @ A", product, allowed_product), grams[split]],
        )
        for split in ("balanced", "left")
    ]


def dora(table: Table) -> None:
    dora = suite("dora")
    kit = dora.Kit(SimpleNamespace(compute_dtype=NARROW))
    w, b, a = eighths("D-w", 4, 6), eighths("D-b", 4, 2), eighths("D-a", 2, 6)
    m = np.array([1.5, 0, -2, 0.75], np.float32)
    problem = strategies.DoraProblem(w, b, a, m, 2.0)
    wz, bz = w.copy(), b.copy()
    wz[1], bz[1] = 0, -0.0
    holed = strategies.DoraProblem(wz, bz, a, m + 1, 2.0)
    layouts = ("linear", "transposed", "conv")
    thirds = holed._replace(w=wz / np.float32(3))
    recorded(
        table,
        "D-2a",
        "test_nothing_changes_at_the_start",
        *((f"{s}, a row of zeros", {"problem": thirds, "layout": s}) for s in layouts),
    )
    recorded(table, "D-3", "test_factored_norm", ("a row of zeros", {"problem": holed}))
    table["D-4a"] = [
        call("dora_weight", "a row of zeros", [wz, bz, a, m + 1], {"scaling": 2.0}, [rules.exact("1", np.zeros(6))])
    ]
    x, bias = eighths("D-x", 3, 6), eighths("D-bias", 4)
    table["D-5a"] = [
        call(
            "dora_forward",
            "a row of zeros",
            [x, x, wz, bias, bz, a, m + 1],
            {"scaling": 2.0},
            [near("T.1", np.full(3, bias[1]), compare.tiny(1, NARROW))],
        )
    ]
    grad = eighths("D-g", 4, 6)
    e = dora.exact(holed, U32)
    A, G = 2.0 * a.astype(np.float64), grad[1].astype(np.float64)
    table["D-6b"] = [
        call(
            "dora_gradient",
            f"a row of zeros, detach {detach}",
            [grad, wz, bz, a, m + 1],
            {"scaling": 2.0, "detach": detach},
            [rules.exact("magnitude.1", np.float64(0)), rules.forward("B.1", A @ G, np.abs(A) @ np.abs(G), 9)],
        )
        for detach in (True, False)
    ]
    recorded(table, "D-7", "test_unmerge_uses_the_factor_that_it_is_given", ("any factor", {"problem": problem}))
    merged = SPEC.dora_merge(wz, bz, a, m + 1, scaling=2.0)
    table["D-7"].append(
        call(
            "dora_merge",
            "a row of zeros",
            [wz, bz, a, m + 1],
            {"scaling": 2.0},
            [
                near("factor", merged.factor, np.abs(e.g) * (e.slip + compare.gamma(2, U32)) + compare.tiny(1, NARROW)),
                near("weight", merged.weight, dora.weight_error(e)),
            ],
        )
    )
    lost = 2 * compare.gamma(2 * 2 + 12, U32) * e.bulk + compare.tiny(2 * 2 + 12, NARROW) / np.abs(e.g)[:, None]
    at = len(table["D-7"]) - 1
    table["D-7"].append(
        call(
            "dora_unmerge",
            "what was merged",
            [rules.earlier(at, "weight"), bz, a, rules.earlier(at, "factor")],
            {"scaling": 2.0},
            [near("", wz, lost)],
        )
    )
    recorded(table, "D-8", "test_dvora", ("factors and gradients", {"case": (problem, grad)}))
    recorded(table, "D-9", "test_decomposition_change", ("rows that turn, one that vanishes", {"problem": problem}))
    e = dora.exact(problem, U32)
    error = dora.weight_error(e) + compare.gamma(1, U32) * (np.abs(e.g)[:, None] * e.bulk + e.bulk)
    off, change = float(np.linalg.norm(error)), e.g[:, None] * e.v - e.w
    tail, size = float(np.linalg.norm(np.linalg.svd(change, compute_uv=False)[2:])), float(np.linalg.norm(change))
    allowed = compare.residual_gap(size + off, 6, U32) + 2 * off + compare.tiny(w.size, NARROW)
    del kit
    table["D-10"] = [
        call(
            "dora_to_lora",
            "rank 2",
            [w, b, a, m],
            {"scaling": 2.0, "rank": 2},
            [
                rules.residual(change, np.eye(6), tail, allowed / compare.gamma(1, U32), 1),
                near("residual", np.float64(tail), 2 * allowed),
                near("update", np.float64(size), allowed),
            ],
        )
    ]


def rotation(table: Table) -> None:
    recorded(
        table,
        "H-2a",
        "test_transform_of_integers_is_exact",
        *((f"order {4**p}", {"power": p, "seed": 3, "dtype": NARROW}) for p in (0, 1, 2)),
    )
    order = generator("H-2b")
    signs = SPEC.hadamard_matrix(order=4)[order.permutation(4)] * np.array([1, -1, -1, 1])
    x = eighths("H-2b", 3, 8)
    x[1] = [0, 0, 512, 0, 0, 0, 0, -0.0]
    recorded(
        table,
        "H-2b",
        "test_transform_with_a_table",
        *(
            (f"a table that is not symmetric, transpose {t}", {"case": (x, signs.astype(np.float32)), "transpose": t})
            for t in (False, True)
        ),
    )
    z = generator("H-4").integers(-9, 10, (4, 4)).astype(np.float32)
    twice = z.copy()
    twice[:, 3] = twice[:, 0]
    table["H-4"] = [
        call("orthogonal_factor", about, [given], {}, [rules.triangular("", given.astype(np.float64))])
        for about, given in (
            ("general", z),
            ("a negative diagonal", np.diag([-1, 2, -3, 4]).astype(np.float32)),
            ("singular", twice),
        )
    ]
    table["H-4a"] = []
    for n, seed, index in ((3, 7, 0), (5, 2**64 - 1, 2**32 - 1)):
        counters = np.zeros((n, -(-n // 4), 4), np.int64)
        counters[..., 0], counters[..., 3] = index, suite("rotation").Purpose.HAAR
        counters[..., 1], counters[..., 2] = np.indices(counters.shape[:2])
        normal = SPEC.philox_normal(counters, seed=seed).reshape(n, -1)[:, :n]
        table["H-4a"].append(
            call(
                "random_orthogonal",
                f"order {n}, seed {seed}",
                [],
                {"order": n, "seed": seed, "index": index},
                [rules.triangular("", normal, 26)],
            )
        )
    w, gain = eighths("H-5", 3, 5), np.array([0.3, -0.7, 0, -0.0, 1.9], np.float32)
    found = SPEC.fuse_norm(w, gain)
    table["H-5"] = [
        call("fuse_norm", "gains of both signs and 0", [w, gain], {}, [rules.forward("", found, np.abs(found), 1)])
    ]

    three = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]], np.float32) / np.float32(3)
    four = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [-1, -1, 1, 1], [1, -1, -1, 1]], np.float32) / np.float32(2)
    pair = np.array([[[0.6, -0.8], [0.8, 0.6]], [[0.28, 0.96], [-0.96, 0.28]]], np.float32)
    rotation = strategies.RotationProblem
    for clause, test in (("H-6", "test_rotate_inputs"), ("H-6a", "test_rotate_outputs")):
        recorded(
            table,
            clause,
            test,
            ("one rotation for every block", {"case": rotation(eighths("H-6", 2, 6), three, 1)}),
            ("two rotations, each twice", {"case": rotation(eighths("H-6", 2, 8), pair, 2)}),
            narrow=True,
        )
    # two heads of values, four of queries; a transform of order 12, which is not symmetric
    shapes = ((4,), (8, 4), (4, 4), (4, 4), (4, 8), (4,), (12, 4), (12, 4), (4, 12), (4,), (4,), (4,))
    block: Any = DecoderBlock(*(eighths(f"H-7{i}", *shape) for i, shape in enumerate(shapes)))
    bare = block._replace(
        gate=block.gate[:4], up=block.up[:4], down=block.down[:, :4].copy(), v_bias=None, o_bias=None, down_bias=None
    )
    recorded(
        table,
        "H-7",
        "test_rotate_block",
        ("two queries per head, R2 per head", {"case": strategies.BlockProblem(block, four, pair), "online": True}),
        ("no biases, no R2", {"case": strategies.BlockProblem(bare, four, None), "online": False}),
        narrow=True,
    )
    recorded(
        table,
        "H-7a",
        "test_rotate_ends",
        *(
            (
                f"tied {head is None}, centred {centre}",
                {
                    "case": (eighths("H-7e", 3, 4) + np.float32(2), np.array([1, 0.5, 0, -2], np.float32), head, four),
                    "centre": centre,
                },
            )
            for head, centre in ((None, False), (None, True), (eighths("H-7h", 3, 4), True))
        ),
        narrow=True,
    )
    tokens = np.array(
        [[7, 0, 0, 0, 0], [0.1] * 5, [0.1, -0.1, 0.1, -0.1, -0.1], [0, -0.0, 0, 0, 0], [-64, 1, -2, 0.5, 3]], np.float32
    )
    recorded(
        table, "H-8", "test_outlier_measures", ("one-hot, level, flat, zero, an outlier", {"x": tokens}), narrow=True
    )
    recorded(
        table,
        "H-9a",
        "test_activations_are_equivariant_token_by_token",
        ("a token 2^-5 times as large", {"x": tokens, "power": -8, "bits": 4}),
        skip=("scale",),
    )
    for one in table["H-9a"]:
        one["expect"].append(rules.exact("values.5", np.zeros(5)))
    common = generator("H-10").standard_normal((4, 8)).astype(np.float32)
    recorded(
        table,
        "H-10",
        "test_activation_clip",
        *(
            (f"{about}, norm {norm}", {"x": x, "bits": 2, "norm": norm, "grid": 10})
            for about, x in (("normal", common), ("an outlier", tokens))
            for norm in (2.4, 1.0)
        ),
    )
    for one in table["H-10"]:
        errors = decode(one["expect"][0]["value"])
        slack = 2 * float(decode(one["expect"][0]["magnitude"]))
        one["expect"].append(rules.candidate("ratio", np.array([1 - i / 10 for i in range(5)]), errors, slack, 1))

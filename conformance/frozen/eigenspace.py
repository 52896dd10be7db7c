"""Vectors of chapter E: eigenspace compensation."""

from __future__ import annotations

import numpy as np

from .. import compare, laws, rules, strategies
from .inputs import (
    NARROW,
    SPEC,
    U32,
    U64,
    Array,
    Options,
    Table,
    clear,
    eighths,
    first_draws,
    generator,
    hessian,
    near,
    rank_three,
    settled,
    six_inputs,
    suite,
    unit_rows,
)


def build(table: Table) -> None:
    _optima(table)
    _patches(table)
    _published(table)
    _adapters(table)
    _residual_moments(table)


def _optima(table: Table) -> None:
    drawn = first_draws()
    d, h = drawn.d, drawn.h
    wide = d.astype(np.float64)
    reach = float(np.sum((np.abs(wide) @ np.abs(h.astype(np.float64))) * np.abs(wide)))
    table.call("E-1", "general", [d, h], rules.forward("", SPEC.objective(d, h), reach, 6 * 8 + 8 + 2))
    few = (drawn.tokens[:3].T @ drawn.tokens[:3]).astype(np.float32)
    diagonal = np.diag(np.array([1, 4, 1, 4, 1, 1, 4, 4], np.float32))
    for about, c in (("full rank", h), ("rank 3", few), ("diagonal", diagonal)):
        norm = float(np.sum(wide**2) * np.linalg.norm(np.abs(c.astype(np.float64)), 2))
        best = laws.optimum(d, c, 2)
        for clause, op, more in (("E-2", "eora", 1), ("E-4", "eora_published", 8), ("E-5a", "eora_certified", 1)):
            if clause != "E-4" or about == "full rank":
                table.call(clause, about, [d, c], rules.objective(d, c, best, norm, more), op=op, rank=2)
        if about == "full rank":  # small singular values of a singular moment have no relative bound
            spectrum = SPEC.error_spectrum(d, c)
            table.call("E-3", about, [d, c], rules.forward("", spectrum, norm / spectrum, 4 * 8))
        table.call("E-3a", about, [d, c], rules.forward("", best, norm, 16 * 8), rank=2)
    tokens = generator("G-2").integers(-3, 4, (24, 8)).astype(np.float64)
    h = (tokens.T @ tokens + 4 * np.eye(8)).astype(np.float32)
    d = generator("E-5a").integers(-9, 10, (4, 8)).astype(np.float32)
    eigen, best = suite("eigenspace"), laws.optimum(d, h, 2)
    size = eigen.gap(d, h, 2, U32) / compare.gamma(1, U32)
    expect = [
        rules.certificate("objective", 1.125 * best, size, 1),
        rules.certificate("objective", best, size, 1, least=True),
    ]
    table.call("E-5a", "the objective told", [d, h], *expect, rank=2, tolerance=0.125)


def _patches(table: Table) -> None:
    d, eigen = rank_three(), suite("eigenspace")
    wide, slip = d.astype(np.float64), compare.gamma(4 * 6, U32)
    for about, c in six_inputs().items():
        squares = laws.squared_spectrum(d, c)
        patch = SPEC.eora(d, c, rank=2, split="left")
        size = np.abs(patch.B) @ (np.abs(patch.B).T @ np.abs(wide))
        off = eigen.gap(d, c, 1, U32)
        gap = squares[1] - squares[2]
        turn = compare.davis_kahan(gap / eigen.size_of(d, c), 3 * 6 + 2, U32) * float(np.linalg.norm(wide))
        if about == "full rank":  # the subspace is determined, and so is the product
            expect = [near("B.T @ B", np.eye(2), slip), near("B @ A", patch.B @ patch.A, 2 * slip * size + turn)]
            table.call("E-2a", f"{about}, left", [d, c], *expect, rank=2, split="left")
        quarter = np.diag(np.sqrt(squares[:2]))
        rule = near("B.T @ B", quarter, (off + 4 * slip * squares[0]) / np.sqrt(squares[1]))
        table.call("E-2a", f"{about}, balanced", [d, c], rule, rank=2)
        judge = compare.gram_gap(eigen.size_of(d, c), 2, 6, U64) + compare.tiny(d.size, NARROW)
        rule = rules.certificate("lower_bound", laws.optimum(d, c, 2), judge / compare.gamma(1, U32), 1)
        table.call("E-5", about, [d, c], rule, rank=2)


def _published(table: Table) -> None:
    d = rank_three()
    wide = d.astype(np.float64)
    c, repaired = 4 * np.eye(6), 4 * np.eye(6)
    c[0, 1] = c[1, 0] = 5
    repaired[:2, :2] = np.array([[13, 5], [5, 13]]) / 2
    root = laws.root(repaired)
    tail = float(np.linalg.norm(np.linalg.svd(wide @ root, compute_uv=False)[2:]))
    values = np.linalg.eigvalsh(repaired)
    allowed = compare.residual_gap(
        float(np.linalg.norm(wide) * np.linalg.norm(root, 2)), 12, U32, float(np.sqrt(values[-1] / values[0]))
    )
    rule = rules.residual(d, root, tail, (allowed + compare.tiny(d.size, NARROW)) / compare.gamma(1, U32), 1)
    table.call("E-4a", "an eigenvalue of -1 becomes 4", [d, c.astype(np.float32)], rule, rank=2, policy="nvlabs")
    holed = np.diag([1.0, 2, 0, 3, 5, 0]).astype(np.float32)
    expect = [rules.exact(f"A.T.{i}", np.zeros(2)) for i in (2, 5)]
    table.call("E-4b", "two zeros, truncated", [d, holed], *expect, rank=2, policy="truncate")
    problem = strategies.PatchProblem(d, six_inputs()["full rank"], 2)
    table.recorded("E-6", "test_stationarity", "a patch of integers", problem=problem, best=False, seed=1)


def _adapters(table: Table) -> None:
    b, a = unit_rows("E-7b", 3, 4), unit_rows("E-7a", 4, 8)
    options = {"bits": 3, "method": "rtn", "group_size": None}
    found = SPEC.quantize_adapter(b, a, hessian("E-7", 8), **options)
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
    table.call("E-7", "rounded, whole rows", [b, a, hessian("E-7", 8)], *expect, **options)
    moment = hessian("E-7", 8, 2)
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
        table.call("E-7", about, [whole[4:, :4].copy(), whole[:4], moment], *expect, **options)


def _residual_moments(table: Table) -> None:
    eigen, rows = suite("eigenspace"), eighths("E-8", 3, 6)
    moment = hessian("E-8", 6, 2)
    holes = np.diag([4.0, 0, 9, 1, 0, 2]).astype(np.float32)
    table.recorded("E-8", "test_residual_moment", "rows in general", reach=eigen.Reach(moment, rows))
    reach = eigen.Reach(moment, np.concatenate([rows, rows[:1] * -4, 0 * rows[:1]]))
    table.recorded("E-8", "test_residual_moment", "one row twice, one of zeros", reach=reach)
    about = "channels, two of them dead"
    table.recorded("E-8", "test_residual_moment", about, reach=eigen.Reach(holes, np.eye(6, dtype=np.float32)[:3] * 3))
    dead = np.zeros(6, np.float32)
    table.call(
        "E-8a",
        "channels restored in full, two of them dead",
        [holes, np.eye(6, dtype=np.float32)[:3] * 3],
        rules.exact("1", dead),
        rules.exact("4", dead),
        rules.exact("T.4", dead),
        *[rules.interval(f"{i}.{i}", np.float64(2.0**-60), np.float64(1.0)) for i in (0, 2)],
    )

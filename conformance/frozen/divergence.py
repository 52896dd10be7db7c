"""Vectors of chapter F: divergence of the output."""

from __future__ import annotations

import numpy as np

from .. import compare, laws, rules
from .inputs import SPEC, U32, Table, generator, hessian, near, rank_three, six_inputs, suite


def build(table: Table) -> None:
    _errors(table)
    _patches(table)
    _labels(table)


def _errors(table: Table) -> None:
    chapter, d = suite("divergence"), rank_three()
    outputs = {"correlated": hessian("F-1", 4, 2), "one of them dead": np.diag([4, 0, 9, 1]).astype(np.float32)}
    for about, g in outputs.items():
        for damping in (0.0, 0.125):
            problem = chapter.OutputProblem(d, six_inputs()["full rank"], g, 2, damping)
            if damping == 0:
                table.recorded("F-1", "test_divergence", f"outputs {about}", problem=problem)
            seen = chapter.weighted(problem)
            values = SPEC.divergence_spectrum(d, problem.c, g, damping=damping)
            square = (1 + seen.kappa) * chapter.gap(seen.d, problem.c, 1, U32)  # of a value by how far it may be off
            allowed = (
                np.minimum(square / np.maximum(values, 2.0**-100), np.sqrt(square)) + compare.gamma(6, U32) * values
            )
            arrays = [d, problem.c, g]
            table.call("F-2", f"outputs {about}, damping {damping}", arrays, near("", values, allowed), damping=damping)


def _patches(table: Table) -> None:
    chapter, d, c, g = suite("divergence"), rank_three(), six_inputs()["full rank"], hessian("F-3", 4, 1)
    g[3] *= 0  # nothing depends on the last output
    g[:, 3] *= 0
    problem = chapter.OutputProblem(d, c, g, 2, 0.0)
    seen = chapter.weighted(problem)
    best = laws.optimum(seen.d, c, 2) / 2
    size = (1 + seen.kappa) * chapter.gap(seen.d, c, 2, U32) / compare.gamma(1, U32)
    told = [
        rules.certificate("objective", best * 1.0625, size, 1),
        rules.certificate("objective", best, size, 1, least=True),
        rules.certificate("lower_bound", best, size, 1),
        rules.certificate("lower_bound", best / 1.0625, size, 1, least=True),
    ]
    table.call("F-3a", "an output that does not count", [d, c, g], *told, rank=2, damping=0.0, tolerance=0.0625)
    expect = [rules.exact("B.3", np.zeros(2))]
    table.call("F-3b", "an output that does not count", [d, c, g], *expect, rank=2, damping=0.0)
    few, white = six_inputs()["rank 3"], np.eye(4, dtype=np.float32)
    norm = float(np.sum(d.astype(np.float64) ** 2) * np.linalg.norm(c.astype(np.float64), 2))
    for about, moment in (("general inputs", c), ("inputs of rank 3", few)):
        best = laws.optimum(d, moment, 2)  # with white outputs the patch is EoRA's, whatever the damping
        rule = rules.objective(d, moment, best, norm, 8)
        table.call("F-3", f"white outputs, {about}", [d, moment, white], rule, rank=2)


def _labels(table: Table) -> None:
    logits = generator("F-4").integers(-16, 17, (64, 5)).astype(np.float32) / 4
    logits[:, 2] -= np.where(np.arange(64) % 2, 1000, 0)  # exp(-1000) is 0: never drawn
    for seed, first in ((0, 0), (2**64 - 1, 2**32 - 64)):
        table.exactly("F-4", f"seed {seed}, positions from {first}", [logits], op="draw_labels", seed=seed, first=first)
    table.exactly("F-4a", "the last ten of them", [logits[-10:].copy()], op="draw_labels", seed=0, first=54)

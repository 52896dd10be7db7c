"""Vectors of chapter C: second moments."""

from __future__ import annotations

import numpy as np

from .. import rules
from .inputs import SPEC, Table, eighths, first_draws, generator


def build(table: Table) -> None:
    drawn = first_draws()
    nodes = []
    for index, leaf in zip((0, 1, 2, 5), drawn.leaves, strict=True):
        (node,) = SPEC.moment_leaf(leaf, index=index)
        nodes.append(node)
        size = np.abs(leaf).astype(np.float64)
        expect = [
            rules.forward("0.sum", node.sum, size.T @ size, 2 * len(leaf)),
            rules.forward("0.magnitude", node.magnitude, node.magnitude, 2 * len(leaf)),
            rules.exact("0.index", index),
            rules.exact("0.tokens", len(leaf)),
        ]
        table.call("C-1", f"leaf {index}", [leaf], *expect, index=index)
    x = generator("C-1a").integers(-9999, 10000, (6, 4)).astype(np.float64)
    table.exactly("C-1a", "integers", [x], "0.sum", "0.sum.T", "0.magnitude", index=3)
    three = [SPEC.moment_leaf(eighths(f"C-2{i}", 3, 2), index=i)[0] for i in (1, 2, 3)]
    for about, one, other in (
        ("leaves 2, 5 and 0, 1", nodes[2:], nodes[:2]),
        ("neighbours that are not siblings", three[:1], three[1:2]),
    ):
        merged = SPEC.moment_merge(one, other)
        expect = [rules.exact(f"{i}.{f}", getattr(n, f)) for i, n in enumerate(merged) for f in n._fields]
        table.call("C-2", about, [one, other], *expect, op="moment_merge")
    merged = SPEC.moment_merge(nodes[2:], nodes[:2])
    total = SPEC.moment_total(merged)
    bulk = np.abs(total.matrix).max()
    expect = [rules.forward("matrix", total.matrix, bulk, 4), rules.exact("tokens", total.tokens)]
    table.call("C-2a", "three nodes", [list(merged)], *expect, op="moment_total")
    found = SPEC.recency_moment(drawn.batches, total=4)
    rows = np.abs(np.concatenate([b.reshape(-1, 4) for b in drawn.batches])).astype(np.float64)
    expect = [rules.forward("", found, rows.T @ rows / 4, 32)]
    table.call("C-3", "two batches of four sequences", [drawn.batches], *expect, total=4)

"""Calls of chapter C, second moments."""

from __future__ import annotations

from .given import Call, Empty, Given, Wrong, floats, ones

FLOAT64 = ("moment_leaf", "moment_merge", "moment_total")


def ordinary(given: Given) -> list[Call]:
    x, nodes, batches = given.x, given.nodes, given.batches
    return [
        Call("moment_leaf", (x.astype(given.dtype),), {"index": 3}),
        Call("moment_merge", (nodes, given.others), {}),
        Call("moment_total", (nodes,), {}),
        Call("recency_moment", (batches,), {"total": 3}),
        Call("recency_moment", (tuple(batches),), {"total": 4}),
    ]


def empty() -> list[Empty]:
    return [Empty("moment_leaf", (floats(0, 2),), {"index": 1}, {0: {"sum": [[0, 0]] * 2, "tokens": 0}})]


def wrong() -> list[Wrong]:
    w, cube, vector = ones(4, 8), ones(2, 2, 8), ones(8)
    return [
        Wrong("moment_leaf", (vector,), {"index": 0}),
        Wrong("moment_leaf", (w,), {"index": -1}),
        Wrong("recency_moment", ([cube],), {"total": 0}),
        Wrong("recency_moment", ([],), {"total": 1}),
        Wrong("recency_moment", ([cube, ones(1, 2, 3)],), {"total": 2}),
    ]

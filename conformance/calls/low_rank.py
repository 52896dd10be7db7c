"""Calls of chapter C, low-rank patches."""

from __future__ import annotations

from .given import Call, Empty, Given, Wrong, ones


def ordinary(given: Given) -> list[Call]:
    d, moment = given.d, given.moment
    return [Call("svd_patch", (d,), {"rank": 2}), Call("scaled_svd_patch", (d, moment), {"rank": 2})]


def empty() -> list[Empty]:
    return []


def wrong() -> list[Wrong]:
    w, vector = ones(4, 8), ones(8)
    return [
        Wrong("svd_patch", (w,), {"rank": 0}),
        Wrong("svd_patch", (w,), {"rank": 5}, ("5", "4")),
        Wrong("svd_patch", (vector,), {"rank": 1}),
        Wrong("svd_patch", (w,), {"rank": 1, "split": "right"}, ("right",)),
        Wrong("scaled_svd_patch", (w, ones(4)), {"rank": 1}),
        Wrong("scaled_svd_patch", (w, -vector), {"rank": 1}),
    ]

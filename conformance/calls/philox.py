"""Calls of chapter P, addressed randomness."""

from __future__ import annotations

import numpy as np

from .given import Call, Empty, Given, Wrong, f32, integers

FLOAT64 = ("philox_uniform", "philox_normal")


def ordinary(given: Given) -> list[Call]:
    addresses = given.addresses
    return [
        Call("philox_words", (addresses,), {"seed": 2**40 + 3}),
        Call("philox_uniform", (addresses,), {"seed": 1}),
        Call("philox_integers", (addresses,), {"seed": 1, "bound": 10}),
        Call("philox_normal", (addresses,), {"seed": 1}),
    ]


def empty() -> list[Empty]:
    return [
        Empty("philox_words", (integers(0, 4),), {"seed": 1}, (0, 4)),
        Empty("philox_uniform", (integers(2, 0, 4),), {"seed": 1}, (2, 0, 4)),
        Empty("philox_integers", (integers(0, 4),), {"seed": 1, "bound": 3}, (0, 4)),
        Empty("philox_normal", (integers(0, 4),), {"seed": 1}, (0, 4)),
    ]


def wrong() -> list[Wrong]:
    address = np.zeros((2, 4), np.int64)
    return [
        Wrong("philox_words", (address[:, :3],), {"seed": 1}, ("3",)),
        Wrong("philox_words", (address - 1,), {"seed": 1}, ("-1",)),
        Wrong("philox_words", (address + 2**32,), {"seed": 1}),
        Wrong("philox_words", (address.astype(f32),), {"seed": 1}),
        Wrong("philox_words", (address,), {"seed": -1}, ("-1",)),
        Wrong("philox_words", (address,), {"seed": 2**64}),
        Wrong("philox_words", (address,), {"seed": 1.5}, ("1.5",)),
        Wrong("philox_uniform", (address[0, :0],), {"seed": 1}),
        Wrong("philox_integers", (address,), {"seed": 1, "bound": 0}, ("0",)),
        Wrong("philox_integers", (address,), {"seed": 1, "bound": 2**31 + 1}),
        Wrong("philox_normal", (address,), {"seed": True}),
    ]

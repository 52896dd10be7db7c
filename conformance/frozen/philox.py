"""Vectors of chapter P: addressed randomness."""

from __future__ import annotations

import numpy as np

from .. import rules
from .inputs import SPEC, Table


def build(table: Table) -> None:
    low, high = 2**31 - 1, 2**32 - 1
    addresses = np.array([[0, 0, 0, 0], [high] * 4, [1, 2, 3, 7], [low, low + 1, 0, high]], np.int64)
    for seed in (0, 1, 2**32, 2**64 - 1):
        about = f"seed {seed}"
        table.exactly("P-1", about, [addresses], seed=seed)
        table.exactly("P-2", about, [addresses], seed=seed)
        table.exactly("P-3", about, [addresses], seed=seed, bound=1000)
        found = SPEC.philox_normal(addresses, seed=seed)
        rule = rules.forward("", found, 6.8, 4 * 3 + 3 * 7)  # sqrt(-2 log 2^-33) bounds every normal
        table.call("P-4", about, [addresses], rule, seed=seed)
    words = np.array([[[0, 0, 0, 0], [high] * 4], [[1, 2, 3, 7], [low, low + 1, 0, high]]], np.int64)
    about = "two by two addresses"
    table.recorded("P-1a", "test_words_depend_on_seed_and_address_alone", about, counters=words, seed=2**64 - 1)
    about, counters = "int32, a seed whose high word counts", words[:, :1].clip(0, 9).astype(np.int32)
    table.recorded("P-1a", "test_words_depend_on_seed_and_address_alone", about, counters=counters, seed=2**32)
    about = "one address without an axis"
    table.recorded("P-1a", "test_words_depend_on_seed_and_address_alone", about, counters=words[1, 1], seed=0)
    few = np.array([[0, 0, 0, 0], [1, 2, 3, 7]], np.int64)
    for b in (1, 3, 2**31 - 1, 2**31):
        table.exactly("P-3", f"bound {b}", [few], seed=5, bound=b)

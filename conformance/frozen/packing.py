"""Vectors of chapter Q, packing."""

from __future__ import annotations

import numpy as np

from .. import rules
from .inputs import SPEC, Table, first_draws, generator


def build(table: Table) -> None:
    drawn = first_draws()
    for clause, layout, held in (("Q-6", "dense", drawn.dense), ("Q-7", "padded", drawn.padded)):
        for bits, codes in enumerate(held, 1):
            table.exactly(clause, f"{bits} bits", [codes], op="pack", bits=bits, layout=layout)
    for bits, length in ((3, 35), (7, 9), (8, 5)):
        codes = generator("Q-6").integers(0, 2**bits, (2, length)).astype(np.int32)
        options = {"bits": bits, "length": length}
        about, words = f"{length} codes of {bits} bits", SPEC.pack(codes, bits=bits)
        table.call("Q-6", about, [words], rules.exact("", codes), op="unpack", **options)

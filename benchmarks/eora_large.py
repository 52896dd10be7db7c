"""The compensation solve at the wide layers of a decoder of 7 billion parameters: problems and gate of ``eora``.

A topic of its own, because the published recipe takes ten minutes for each solve at 4096 x 11008: it is called twice,
once for the gate and once for its time, and its memory is not weighed.
"""

from __future__ import annotations

from collections.abc import Iterator

from eora import case
from harness import Case

SHAPES = ((11008, 4096), (4096, 11008))


def cases(*, quick: bool) -> Iterator[Case]:
    """Both orientations; ``quick`` leaves out the one whose second moment is the larger side."""
    for m, k in SHAPES[:1] if quick else SHAPES:
        yield case(m, k, "power", repeats=1, memory=False)

"""What the kit says of StatsQ with its clip before the rounding: the defects of the published module are found."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from lowbit.conformance.runner import run

from . import statsq_by_clip
from .published import agree


def test_the_verdict() -> None:
    outcomes = list(run(statsq_by_clip, ["O-1", "O-2", "O-3"]))
    agree("OFQ", outcomes)
    (zeros,) = [o.note for o in outcomes if o.check.clause.id == "O-2a"]
    assert "values[0, 0] is nan" in zeros


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 2), ("float16", 2), ("float32", 1)])
def test_the_level_that_half_precision_adds(dtype: str, most: int) -> None:
    w = torch.tensor([[8.0, -8.0, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5]]).to(getattr(torch, dtype))
    assert int(statsq_by_clip.statsq(w, bits=2).codes.max()) == most

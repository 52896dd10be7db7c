"""Two models against their original, on the same windows: which is nearer, and by how much more than chance.

Per window the mean KL(original ‖ model) and the mean negative log-likelihood of each model are taken; the differences
A − B over the windows have a mean, its standard error and the t of a paired test (two-sided; Student 1908).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from lowbit.models.likelihood import Likelihood, Mean
from lowbit.runs.events import OnEvent

from .evaluate import Measured, measure
from .options import CompareOptions

__all__ = ["CompareResult", "Difference", "compare"]


@dataclass(frozen=True)
class Difference:
    """Mean over windows of A − B, nats per token."""

    value: float
    error: float  # standard error
    t: float | None  # None where every window gives the same difference
    p: float | None  # two-sided

    @classmethod
    def of(cls, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Difference:
        """Of one value a window, at least two windows."""
        value, error = Mean.of(a - b)
        assert error is not None
        if not error:
            return cls(value, error, None, None)
        t = value / error
        return cls(value, error, t, float(2 * stats.t.sf(abs(t), len(a) - 1)))


@dataclass(frozen=True)
class CompareResult:
    """What :func:`compare` measured."""

    measured: Measured  # of "A", "B" and "original"
    kl: Difference
    nll: Difference
    seconds: float

    def record(self, options: CompareOptions) -> dict[str, Any]:
        """The JSON record of the ``compare`` command."""
        rows = self.measured.rows
        places = _models(options)
        return {
            "schema": "lowbit.compare/1",
            **{
                key: {
                    "path": places[name][0],
                    "adapter": None if places[name][1] is None else str(places[name][1]),
                    "dtype": self.measured.dtypes[name],
                    **_column(self.measured.likelihoods[name]),
                }
                for key, name in (("a", "A"), ("b", "B"), ("against", "original"))
            },
            "difference": {"kl": asdict(self.kl), "nll": asdict(self.nll)},
            "tokens": self.measured.likelihoods["A"].tokens,
            "windows": len(rows.ids),
            "length": rows.ids.shape[1],
            "text": {
                "source": rows.source,
                "sha256": rows.sha256,
                "skip_tokens": options.skip_tokens,
                "special_tokens": list(rows.leading),
            },
            "seconds": self.seconds,
        }


def _column(likelihood: Likelihood) -> dict[str, Any]:
    nll = Mean.of(likelihood.per_token(likelihood.losses))
    return {
        "perplexity": likelihood.perplexity,
        "perplexity_error": likelihood.perplexity_error,
        "nll": nll.value,
        "nll_error": nll.error,
        **({} if likelihood.distance is None else likelihood.distance.record()),
    }


def _models(options: CompareOptions) -> dict[str, tuple[str, Path | None]]:
    return {
        "A": (options.a, options.adapter_a),
        "B": (options.b, options.adapter_b),
        "original": (options.against, None),
    }


def compare(options: CompareOptions, on_event: OnEvent | None = None) -> CompareResult:
    """Two models, window by window, against their original.

    Raises:
        RecipeError: anything wrong with the inputs; models with other tokens; fewer than two windows.
    """
    started = time.perf_counter()
    measured = measure(_models(options), options, on_event, reference="original", least=2)
    a, b = (measured.likelihoods[name] for name in ("A", "B"))
    assert a.divergences is not None
    assert b.divergences is not None
    return CompareResult(
        measured,
        Difference.of(a.per_token(a.divergences), b.per_token(b.divergences)),
        Difference.of(a.per_token(a.losses), b.per_token(b.losses)),
        time.perf_counter() - started,
    )

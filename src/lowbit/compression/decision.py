"""Settings of all modules under a budget, out of the table of a plan; no weight, no model and no torch is needed.

The files of a plan say for every module what every setting takes in bytes and costs in nats per token (chapter F), and
costs add up, so the choice is a multiple-choice knapsack (chapter K) with a bound that tells how good it is.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit.backends import load
from lowbit.runs.errors import RecipeError

from .setting import DENSE, Setting

__all__ = ["KEPT", "Decision", "Table", "as_row", "offered", "parse_size"]

KEPT = Setting(DENSE, None, 0, DENSE)
"""A module that stays as it is."""

_BITS = (2, 3, 4, 5, 6, 8)
_RANKS = (4, 8, 16, 32, 64, 128)
_FACTOR_BITS = (4, 8, DENSE)

_GAP = 1e-3  # between a decision and its lower bound: predictions are far less certain
_SPEC = "reference"  # the backend that decides: it needs nothing but NumPy, and a second
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of ``70MB``, ``1.5GiB`` or ``70000000``.

    Raises:
        RecipeError: no size.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d*)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        raise RecipeError(f"option size: {text!r} is no size: give bytes, or a number with KB, MB, GB, KiB, MiB or GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def offered(group_sizes: Sequence[int | None], *, adapters: bool) -> list[Setting]:
    """All settings that a decision chooses from, those of one width together."""
    patches = [(0, DENSE), *(itertools.product(_RANKS, _FACTOR_BITS) if adapters else ())]
    return [Setting(b, g, *patch) for b, g, patch in itertools.product(_BITS, group_sizes, patches)] + [KEPT]


def as_row(setting: Setting) -> list[int | None]:
    """A setting as it stands in a record."""
    return [setting.bits, setting.group_size, setting.rank, setting.factor_bits]


@dataclass(frozen=True)
class Decision:
    """Settings by module, and what they cost."""

    settings: dict[str, Setting]
    bytes: int  # of all files of weights
    kl: float  # predicted, nats per token
    lower_bound: float  # no settings of the table within the budget are predicted below


class Table:
    """Bytes and nats of every setting of every module.

    Args:
        record: of a plan, checked by its schema.
        keep: patterns of modules that stay as they are.
        bits_of: pattern → width that modules get; of patterns that fit, the last counts.

    Raises:
        RecipeError: a pattern that fits no module, or a width that is not in the table.
    """

    def __init__(self, record: Mapping[str, Any], *, keep: Sequence[str] = (), bits_of: Sequence[tuple[str, int]] = ()):
        self.settings = [Setting(*setting) for setting in record["settings"]]
        self.names: list[str] = [module["name"] for module in record["modules"]]
        self.weights: int = record["bytes_16"] // 2  # values of the whole model
        self.given: int = record["bytes_given"]  # size of the files that the model came in
        self._fixed: int = record["fixed_bytes"]
        bytes_ = np.array([[-1 if b is None else b for b in m["bytes"]] for m in record["modules"]], np.int64)
        loss = np.array([[np.inf if x is None else x for x in m["kl"]] for m in record["modules"]], float)
        allowed = (bytes_ >= 0) & np.isfinite(loss) & self._allowed(keep, bits_of)
        for name, row in zip(self.names, allowed, strict=True):
            if not row.any():
                raise RecipeError(f"{name}: its shape fits none of the settings that are left for it")
        # An option that is not allowed repeats one that is.
        first = allowed.argmax(axis=1)[:, None]
        self._bytes = np.where(allowed, bytes_, np.take_along_axis(bytes_, first, 1))
        self._loss = np.where(allowed, loss, np.take_along_axis(loss, first, 1))
        self._place = np.where(allowed, np.arange(len(self.settings)), first)

    def _allowed(self, keep: Sequence[str], bits_of: Sequence[tuple[str, int]]) -> npt.NDArray[np.bool_]:
        allowed = np.ones((len(self.names), len(self.settings)), bool)
        widths = np.array([setting.bits for setting in self.settings])
        for pattern, bits in [*bits_of, *((pattern, DENSE) for pattern in keep)]:
            rows = [fits(pattern, name) for name in self.names]
            if not any(rows):
                raise RecipeError(f"pattern {pattern!r} fits no module; the names are such as {self.names[0]}")
            if bits not in widths:
                known = ", ".join(map(str, sorted(set(widths.tolist()))))
                raise RecipeError(f"pattern {pattern!r}: {bits} bits are not in the plan, which has {known}")
            allowed[rows] = widths == bits
        return allowed

    @property
    def least(self) -> int:
        """Bytes of the smallest files that there are."""
        return int(self._bytes.min(axis=1).sum()) + self._fixed

    def frontier(self) -> list[tuple[int, float]]:
        """Vertices of the convex curve of least nats against bytes."""
        backend = load(_SPEC)
        curve = backend.choice_frontier(self._bytes, self._loss)
        return [(int(c) + self._fixed, float(l)) for c, l in zip(curve.cost, curve.loss, strict=True)]

    def within(self, size: int) -> Decision:
        """The settings that cost least in files of at most ``size`` bytes.

        Raises:
            RecipeError: no files are that small, or the model came in smaller ones.
        """
        if size > self.given:
            raise RecipeError(
                f"{size:,} bytes are more than the model takes as it is, {self.given:,}: nothing to decide"
            )
        if size < self.least:
            raise RecipeError(
                f"{size:,} bytes are too few: the smallest that this model can be made here is {self.least:,} bytes"
            )
        return self._solved(size)

    def _solved(self, size: int) -> Decision:
        backend = load(_SPEC)
        found = backend.allocate_choices(self._bytes, self._loss, budget=size - self._fixed, tolerance=_GAP)
        rows = np.arange(len(self.names))
        places = self._place[rows, found.choice]
        settings = {name: self.settings[place] for name, place in zip(self.names, places, strict=True)}
        return Decision(settings, found.cost + self._fixed, found.loss, found.lower_bound)

    def below(self, kl: float) -> Decision:
        """The smallest files, within a thousandth, whose predicted cost is at most ``kl`` nats per token.

        Raises:
            RecipeError: ``kl`` is negative, or no files, or only files larger than the given ones, are that close.
        """
        if not kl >= 0:
            raise RecipeError(f"max_kl {kl}: give nats per token, 0 or more")
        curve = self.frontier()
        low = max((size for size, loss in curve if loss > kl), default=self.least)
        if curve[-1][1] > kl:
            raise RecipeError(f"max_kl {kl}: the best that the settings left allow is {curve[-1][1]:.3g}")
        high = next(size for size, loss in curve if loss <= kl)
        while high - low > max(1, high // 1000):
            middle = (low + high) // 2
            low, high = (low, middle) if self._solved(middle).kl <= kl else (middle, high)
        return self.within(high)


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern means a module: with wildcards its whole name or the end of it, behind a dot."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")

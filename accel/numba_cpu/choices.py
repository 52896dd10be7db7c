"""Chapter K on NumPy arrays: one option for every module under a budget, see :mod:`lowbit.accel.common.choices`."""

from __future__ import annotations

from lowbit.accel.common import choices as common
from lowbit.accel.common.choices import Array
from lowbit.reference.types import ChoiceFrontier, Choices

from ._arrays import finite_weights, integers

__all__ = ["allocate_choices", "choice_frontier"]


def _options(clause: str, cost: Array, loss: Array) -> tuple[Array, Array]:
    return common.check_options(clause, integers(clause, "cost", cost), finite_weights(clause, "loss", loss))


def choice_frontier(cost: Array, loss: Array, /) -> ChoiceFrontier[Array]:
    """Vertices of the least loss against cost.  [K-12]"""
    return ChoiceFrontier(*common.frontier(*_options("K-12", cost, loss)))


def allocate_choices(cost: Array, loss: Array, /, *, budget: int, tolerance: float = 1e-6) -> Choices[Array]:
    """Least loss within the budget, with its bound.  [K-13]"""
    return common.solve("K-13", *_options("K-13", cost, loss), budget, tolerance)

"""Chapter K on torch tensors: one option for every module under a budget, see :mod:`lowbit.accel.common.choices`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowbit.accel.common import choices as common
from lowbit.reference.types import ChoiceFrontier, Choices

from .arrays import as_integers, as_weights, operation, refuse_nan

__all__ = ["allocate_choices", "choice_frontier"]


def _options(clause: str, cost: Tensor, loss: Tensor) -> tuple[common.Array, common.Array]:
    """On the CPU."""
    loss = as_weights(clause, "loss", loss)
    refuse_nan(clause, "loss", loss)
    cost = as_integers(clause, "cost", cost, like=loss)
    return common.check_options(clause, cost.cpu().numpy(), loss.to(torch.float64).cpu().numpy())


def _back(x: common.Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).to(like.device)


@operation
def choice_frontier(cost: Tensor, loss: Tensor, /) -> ChoiceFrontier[Tensor]:
    """Vertices of the least loss against cost.  [K-12]"""
    costs, losses = common.frontier(*_options("K-12", cost, loss))
    return ChoiceFrontier(_back(costs, loss), _back(losses, loss))


@operation
def allocate_choices(cost: Tensor, loss: Tensor, /, *, budget: int, tolerance: float = 1e-6) -> Choices[Tensor]:
    """Least loss within the budget, with its bound.  [K-13]"""
    found = common.solve("K-13", *_options("K-13", cost, loss), budget, tolerance)
    return Choices(_back(found.choice, loss), found.cost, found.loss, found.lower_bound)

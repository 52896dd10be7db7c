"""Chapter U: what trains, and the parameters of a step."""

from __future__ import annotations

import math
from typing import get_args

from lowbit.reference.errors import SpecError
from lowbit.reference.types import TRAINED, ScaleNorm

from .refusals import check_either

__all__ = ["check_norm", "check_train", "check_tuning"]


def check_train(clause: str, train: str) -> None:
    """Refuse an unknown rule for which scales train."""
    if train not in TRAINED:
        raise SpecError(clause, f"unknown rule {train!r} for what trains; one of {', '.join(TRAINED)}")


def check_norm(clause: str, norm: str) -> None:
    """Refuse an unknown normalisation of a gradient."""
    check_either(clause, "norm", norm, get_args(ScaleNorm))


def check_tuning(
    clause: str, *, step: int, lr: float, beta1: float, beta2: float, epsilon: float, decay: float
) -> None:
    """Refuse parameters with which no step of AdamW can be taken."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise SpecError(clause, f"step must be a positive integer, got {step!r}")
    for name, value in {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "decay": decay}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(clause, f"{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and value >= 0):
            raise SpecError(clause, f"{name} must be finite and not negative, got {value!r}")
        if name.startswith("beta") and value >= 1:
            raise SpecError(clause, f"{name} must be below 1, got {value!r}")

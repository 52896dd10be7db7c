"""What is decided for one module: code width, scales, rank and width of its factors."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.runs.errors import RecipeError

__all__ = ["DENSE", "Setting"]

DENSE = 16
"""Bits that stand for a module or factors left in the type of storage."""

_BITS = (2, 3, 4, 5, 6, 8, DENSE)
_FACTOR_BITS = (3, 4, 8, DENSE)


@dataclass(frozen=True)
class Setting:
    """One choice for one module.

    Raises:
        RecipeError: a width that no file holds, or a size that is none.
    """

    bits: int  # of the codes; 16 keeps the module dense
    group_size: int | None  # columns per scale, None: one scale per row
    rank: int  # of the adapter, 0: none
    factor_bits: int  # of the codes of its factors; 16 keeps them in the type of storage

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise RecipeError(f"codes of {self.bits} bits: the files hold {', '.join(map(str, _BITS))}")
        if self.factor_bits not in _FACTOR_BITS:
            raise RecipeError(f"factors of {self.factor_bits} bits: the files hold {', '.join(map(str, _FACTOR_BITS))}")
        if self.rank < 0 or (self.group_size is not None and self.group_size < 1):
            raise RecipeError(f"rank {self.rank} with groups of {self.group_size}: neither may be below zero or empty")

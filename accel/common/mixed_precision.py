"""Chapter M: tables of errors and sizes, and how many rows a width gets."""

from __future__ import annotations

from collections.abc import Sequence

from lowbit.reference.errors import SpecError

__all__ = ["check_allocation", "cluster_counts"]


def check_allocation(clause: str, errors: Sequence[int], sizes: Sequence[int], budget: int) -> None:
    """Refuse tables of different shape, without a width, and a budget that is no integer."""
    if len(errors) != 2 or tuple(errors) != tuple(sizes) or errors[1] == 0:
        raise SpecError(
            clause, f"errors and sizes must share a shape (n, Q) with Q >= 1, got {tuple(errors)} and {tuple(sizes)}"
        )
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise SpecError(clause, f"budget must be an integer and not negative, got {budget!r}")


def cluster_counts(clause: str, rows: int, clusters: int, ratio: int) -> list[int]:
    """Rows per cluster, the most frequent first: shares 1 : r : r² … rounded down, the rest to the last."""
    if isinstance(clusters, bool) or not isinstance(clusters, int) or not 1 <= clusters <= 8:
        raise SpecError(clause, f"clusters must be between 1 and 8, got {clusters!r}")
    if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
        raise SpecError(clause, f"ratio must be a positive integer, got {ratio!r}")
    whole = (ratio**clusters - 1) // (ratio - 1) if ratio > 1 else clusters
    counts, left = [], rows
    for power in range(clusters - 1):
        counts.append(rows * ratio**power // whole)
        left -= counts[-1]
    return [*counts, left]

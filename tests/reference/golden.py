"""Reading of the golden vectors: arrays, parameters and the tolerance that the manifest gives for a quantity."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PREFIXES = ("eora_", "gptq_", "sparsegpt_", "wanda_", "weightquant_", "actquant_", "pack_")


@dataclass(frozen=True)
class Vector:
    """One golden file."""

    name: str
    parameters: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    tolerances: dict[str, float]

    def __getitem__(self, key: str) -> npt.NDArray[Any]:
        return self.arrays[key]

    def close(self, actual: npt.ArrayLike, expected: npt.ArrayLike, quantity: str) -> None:
        """Largest difference ≤ the manifest's tolerance times the largest expected value."""
        a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert a.shape == e.shape
        allowed = self.tolerances[quantity] * np.abs(e).max()
        assert np.abs(a - e).max() <= allowed, f"{self.name} {quantity}: {np.abs(a - e).max()} > {allowed}"


@lru_cache
def manifest(shared: Path) -> dict[str, dict[str, Any]]:
    """File name → entry."""
    entries = json.loads((shared / "golden" / "manifest.json").read_text(encoding="utf-8"))["entries"]
    return {entry["file"]: entry for entry in entries}


def load(shared: Path, file: str) -> Vector:
    """One golden file, by name without the suffix."""
    entry = manifest(shared)[f"{file}.npz"]
    with np.load(shared / "golden" / f"{file}.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    tolerances = {r["quantity"]: r.get("suggested_rel_tolerance") for r in entry["recomputation_float64"]}
    return Vector(file, entry["parameters"], arrays, tolerances)

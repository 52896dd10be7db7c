"""Tensors to the arrays of a backend and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lowbit.backends import BackendError, load
from lowbit.runs.errors import RecipeError

__all__ = ["Arrays"]


class Arrays:
    """A loaded backend and its arrays; nothing is copied when those are tensors already.

    Attributes:
        backend: what computes.
        moment_dtype: type of second moments: a float64 one would make a float32 backend compute everything in float64.
    """

    def __init__(self, backend: Any) -> None:
        probe = backend.asarray(np.zeros(1, dtype=np.float32))
        self.backend = backend
        self.moment_dtype = torch.float64 if backend.compute_dtype == "float64" else torch.float32
        self._device = probe.device if isinstance(probe, torch.Tensor) else None

    @classmethod
    def load(cls, name: str, *, device: str, threads: int | None) -> Arrays:
        """Load a backend by name, on ``device`` if it is torch's, with ``threads`` if it is Numba's.

        Raises:
            RecipeError: there is no such backend, or it cannot run here.
        """
        settings: dict[str, Any] = {}
        if name == "torch" and device != "cpu":
            settings["device"] = device
        if name == "numba" and threads is not None:
            settings["threads"] = threads
        try:
            return cls(load(name, **settings))
        except BackendError as error:
            raise RecipeError(str(error)) from error

    def give(self, tensor: torch.Tensor) -> Any:
        """Tensor → array. bfloat16 becomes float32, exactly, where arrays are NumPy's."""
        if self._device is not None:
            return tensor.to(self._device)
        tensor = tensor.detach().cpu()
        return self.backend.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())

    def take(self, array: Any) -> torch.Tensor:
        """Array → tensor on the CPU."""
        if isinstance(array, torch.Tensor):
            return array.detach().cpu()
        return torch.from_numpy(np.ascontiguousarray(self.backend.to_numpy(array)))

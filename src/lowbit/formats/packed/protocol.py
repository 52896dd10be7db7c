"""What a format of packed weights can do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import torch

__all__ = ["PackedFormat", "PackedWeight", "WeightScheme"]


class WeightScheme(NamedTuple):
    """How the weight of one module is quantized."""

    bits: int
    scheme: str  # "asymmetric" or "symmetric"
    group_size: int | None  # None for one group per row


class PackedWeight(NamedTuple):
    """A quantized weight (m, k) in the conventions of clause Q-1, whatever its layout in a file."""

    codes: torch.Tensor  # int32 (m, k)
    scale: torch.Tensor  # (m, G), as stored
    zero_point: torch.Tensor  # int32 (m, G)
    group_index: torch.Tensor | None  # int32 (k,), the group of each column; None for runs of k / G columns
    bits: int
    scheme: str

    def dequantize(self) -> torch.Tensor:
        """Dense weight (m, k) in the type of the scales: scale · (code − zero point).

        ``code − zero point`` is a whole number of at most nine bits, exact in every type the scales may have: one
        rounding.
        """
        m, k = self.codes.shape
        groups = int(self.scale.shape[1])
        if self.group_index is not None:
            column = self.group_index.to(torch.int64)
            return (self.codes - self.zero_point[:, column]).to(self.scale.dtype) * self.scale[:, column]
        whole = self.codes.view(m, groups, k // groups) - self.zero_point.unsqueeze(-1)
        return (whole.to(self.scale.dtype) * self.scale.unsqueeze(-1)).reshape(m, k)


class PackedFormat(Protocol):
    """The packed modules of one model, as its ``quantization_config`` describes them.

    Attributes:
        config: the ``quantization_config``.
    """

    @property
    def config(self) -> Mapping[str, Any]: ...

    def holds(self, names: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Packed modules among the names of stored tensors, in their order: module path → names of its parts."""
        ...

    def scheme(self, module: str) -> WeightScheme:
        """How a packed module is quantized."""
        ...

    def reaches(self, module: str, kinds: Collection[str]) -> bool:
        """Whether a loader takes a module of the model for a quantized one; ``kinds`` are the names of its classes."""
        ...

    def scale_of(self, module: str) -> str:
        """Name of the stored tensor whose type the dense weight has."""
        ...

    def shape(self, module: str, read: Callable[[str], torch.Tensor]) -> tuple[int, int]:
        """(m, k) of a packed module; ``read`` gives a stored tensor by name."""
        ...

    def unpack(self, module: str, tensors: Mapping[str, torch.Tensor]) -> PackedWeight:
        """A module out of its parts, by their names.

        Raises:
            CheckpointError: a missing part, or sizes that do not fit.
        """
        ...

    def dequantize(self, module: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The dense weight of a module, with little memory beside it; raises what :meth:`unpack` does."""
        ...

    def pack(self, module: str, weight: PackedWeight) -> dict[str, torch.Tensor]:
        """The parts of a module, by their names.

        Raises:
            CheckpointError: shapes that do not fit, or codes outside what the format can hold.
        """
        ...

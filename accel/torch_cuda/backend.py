"""The Torch backend as an object: the operations under a device for new arrays and a choice of kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import torch

from . import operations
from .arrays import asarray, to_numpy
from .policy import Kernels, Policy, under

__all__ = ["Kernels", "TorchBackend", "configure"]


class TorchBackend(Policy):
    """The operations of the contract on torch tensors of any device.

    Results live on the device of the arguments. Halves are computed in float32 and answered in float32; float64 is
    computed in float64. Nothing is recorded for autograd, autocast is off inside an operation, and float32 products
    use neither TF32 nor bfloat16 whatever the process allows.

    Attributes:
        name: ``"torch"``.
        compute_dtype: ``"float32"``: the precision of sums when inputs are float32.
        device: where :meth:`asarray` puts arrays.
        kernels: ``"auto"``, Triton on CUDA tensors where :meth:`supports` allows; ``"torch"``, never; ``"triton"``,
            wherever a kernel exists, on CPU tensors too under Triton's interpreter.
    """

    name: str = "torch"
    compute_dtype: str = "float32"
    to_numpy = staticmethod(to_numpy)

    def __init__(self, device: str = "cpu", kernels: Kernels = "auto") -> None:
        super().__init__(device, kernels)
        self.asarray = under(self, asarray)
        for name, function in vars(operations).items():
            if not name.startswith("_"):
                setattr(self, name, under(self, function))

    if TYPE_CHECKING:

        def __getattr__(self, operation: str) -> Any: ...

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device, self.kernels)

    def __repr__(self) -> str:
        return f"TorchBackend(device={self.device!r}, kernels={self.kernels!r})"


def configure(device: str = "cpu", kernels: Kernels = "auto") -> TorchBackend:
    """The backend on another device, or with another choice of kernels.

    Args:
        device: a torch device, such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; it must hold float64.
        kernels: see :class:`TorchBackend`.

    Raises:
        ValueError: the device is unknown or cannot be used here, or ``kernels="triton"`` cannot run on it.
    """
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels must be one of {', '.join(get_args(Kernels))}, got {kernels!r}")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} is not available: torch {torch.__version__} finds no CUDA GPU here")
    try:
        torch.ones((), dtype=torch.float64, device=place).item()
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    backend = TorchBackend(str(place), kernels)
    if kernels == "triton":
        reason = backend.supports("quantize")
        if reason is not True:
            raise ValueError(f"kernels='triton' cannot be used on {device!r}: {reason}")
    return backend

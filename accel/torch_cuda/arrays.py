"""Tensors at the door of every operation: dtype rules, refusals, and the arithmetic an operation runs under."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowbit.accel.common.door import refuse_unlike
from lowbit.accel.common.refusals import check_matrix, refuse_nonfinite
from lowbit.reference.errors import SpecError

from . import policy

__all__ = [
    "as_integers",
    "as_numbers",
    "as_weights",
    "asarray",
    "finite_weights",
    "full_precision",
    "operation",
    "refuse_nan",
    "refuse_only_nan",
    "row_chunks",
    "to_numpy",
    "transposed",
    "working_dtype",
]

P = ParamSpec("P")
R = TypeVar("R")

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Dtype an operation computes in and answers in: float64 when any argument is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def as_weights(clause: str, name: str, x: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Refuse what is not a floating tensor on one device; otherwise return ``x`` detached from autograd.

    Args:
        clause: clause named in the refusal.
        name: the argument's name in the refusal.
        x: the argument.
        like: another argument, whose device ``x`` must share.
    """
    _refuse_foreign(clause, name, x, like)
    if x.dtype not in _FLOATS:
        raise SpecError(clause, f"{name} must be float16, bfloat16, float32 or float64, got {_dtype_name(x)}")
    return x.detach()


def as_numbers(clause: str, name: str, x: Tensor, *, like: Tensor | None = None) -> Tensor:
    """:func:`as_weights`, or the integers that another operation answers, in float64."""
    return as_weights(clause, name, x.to(torch.float64) if x.dtype in _INTEGERS else x, like=like)


def as_integers(clause: str, name: str, x: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Refuse what is not an integer tensor on one device; otherwise return ``x``."""
    _refuse_foreign(clause, name, x, like)
    if x.dtype not in _INTEGERS:
        raise SpecError(clause, f"{name} must hold integers, got {_dtype_name(x)}")
    return x.detach()


def _refuse_foreign(clause: str, name: str, x: object, like: Tensor | None) -> None:
    if not isinstance(x, Tensor):
        raise SpecError(clause, f"{name} must be a torch.Tensor, got {type(x).__name__}; convert it with asarray()")
    if x.layout != torch.strided:
        raise SpecError(clause, f"{name} must be a dense tensor, got layout {x.layout}")
    if like is not None and x.device != like.device:
        raise SpecError(clause, f"{name} is on {x.device}, the other arguments are on {like.device}")


def _dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def refuse_nan(clause: str, name: str, x: Tensor) -> None:
    """Raise the clause A-4 error when ``x`` holds a NaN or an infinity.

    A finite sum proves that every term is finite, so the usual case costs one reading and one synchronisation.
    """
    if x.numel() == 0 or bool(torch.isfinite(x.sum(dtype=working_dtype(x)))):
        return
    bad = ~torch.isfinite(x)
    count = int(bad.sum())
    if count:
        first = np.unravel_index(int(bad.reshape(-1).to(torch.uint8).argmax()), tuple(x.shape))
        refuse_nonfinite(clause, name, count, tuple(int(i) for i in first))


def finite_weights(
    clause: str, name: str, x: Tensor, shape: tuple[int | None, ...], *, like: Tensor | None = None
) -> Tensor:
    """:func:`as_weights` of a shape (None matches any length), without NaN and infinities."""
    x = as_weights(clause, name, x, like=like)
    check_matrix(clause, name, x.shape, shape)
    refuse_nan(clause, name, x)
    return x


def refuse_only_nan(clause: str, name: str, x: Tensor) -> None:
    """Raise ``clause`` when ``x`` holds a NaN; infinities pass (rounding saturates them)."""
    bad = torch.isnan(x)
    if x.numel() and bool(bad.any()):
        first = np.unravel_index(int(bad.reshape(-1).to(torch.uint8).argmax()), tuple(x.shape))
        where = tuple(int(i) for i in first)
        raise SpecError(clause, f"{name} holds {int(bad.sum())} NaN, the first at {where}")


_AUTOCAST = ("cpu", "cuda", "xpu")


class _Legacy:
    """torch before 2.9: one setting for both backends, spelled highest, high, medium."""

    @property
    def fp32_precision(self) -> str:
        return {"highest": "ieee", "high": "tf32"}.get(torch.get_float32_matmul_precision(), "bf16")

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        torch.set_float32_matmul_precision({"ieee": "highest", "tf32": "high"}.get(value, "medium"))


def _precision_switches() -> tuple[tuple[Any, bool], ...]:
    """Each switch with whether it governs CPU products."""
    cuda: Any = torch.backends.cuda.matmul
    if not hasattr(cuda, "fp32_precision"):
        return ((_Legacy(), True),)
    return ((cuda, False), (torch.backends.mkldnn.matmul, True))  # type: ignore[attr-defined]


_SWITCHES = _precision_switches()


@contextlib.contextmanager
def full_precision(*, bfloat16_products: bool = False) -> Iterator[None]:
    """Multiply float32 matrices as float32, whatever the caller allowed (TF32, bf16), and restore the caller's choice.

    The settings are process-wide in torch, so they are only touched when they differ from what is needed.

    Args:
        bfloat16_products: let CPU matrix units take bfloat16 factors. For float32 tensors that hold bfloat16 values
            nothing is lost: their products fit float32 and sums stay in float32.
    """
    changed: list[tuple[Any, str]] = []
    try:
        for switch, is_cpu in _SWITCHES:
            wanted = "bf16" if bfloat16_products and is_cpu else "ieee"
            before = switch.fp32_precision
            if before != wanted and not (before == "none" and wanted == "ieee"):
                switch.fp32_precision = wanted
                changed.append((switch, before))
        yield
    finally:
        for switch, before in changed:
            switch.fp32_precision = before


def operation(function: Callable[P, R]) -> Callable[P, R]:
    """Run an operation without autograd, without autocast and with float32 products in full precision.

    torch.compile leaves it alone: it looks at values, and its switches are no part of a graph.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            found: R = torch.compiler.disable(run)(*args, **kwargs)  # type: ignore[no-untyped-call]
            return found
        with torch.no_grad(), full_precision():
            mixed = [device for device in _AUTOCAST if torch.is_autocast_enabled(device)]
            if not mixed:  # and no stack to build
                return function(*args, **kwargs)
            with contextlib.ExitStack() as stack:
                for device in mixed:
                    stack.enter_context(torch.autocast(device, enabled=False))
                return function(*args, **kwargs)

    return run


def row_chunks(rows: int, width: int, device: torch.device, *, elements: int | None = None) -> Iterator[slice]:
    """Slices of ``range(rows)`` that keep temporaries small: in cache on a CPU, large launches elsewhere."""
    budget = elements or (1 << 17 if device.type == "cpu" else 1 << 24)
    step = max(1, budget // max(width, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def transposed(x: Tensor) -> Tensor:
    """A contiguous copy of ``xᵀ``, written in strips on a CPU: long power-of-two strides defeat its caches."""
    if x.device.type != "cpu":
        return x.mT.clone(memory_format=torch.contiguous_format)
    result = torch.empty((x.shape[1], x.shape[0]), dtype=x.dtype, device=x.device)
    for start in range(0, x.shape[0], 64):
        result[:, start : start + 64] = x[start : start + 64].mT
    return result


def asarray(x: npt.NDArray[Any], /) -> Tensor:
    """NumPy → tensor on the backend's device, same dtype and values; shares memory on a CPU where torch can.

    ``ml_dtypes.bfloat16`` arrays become torch.bfloat16.
    """
    refuse_unlike("x", x)
    x = np.asarray(x)
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.uint16).copy()).view(torch.bfloat16).to(policy.device())
    if not x.flags.writeable or any(s < 0 for s in x.strides) or not x.dtype.isnative:
        x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(x).to(policy.device())


def to_numpy(x: Tensor, /) -> npt.NDArray[Any]:
    """Tensor on any device → NumPy array, same values.

    bfloat16, which NumPy lacks, comes back as float32: every bfloat16 value is a float32 value.
    """
    x = x.detach().cpu().resolve_conj().resolve_neg()
    array: npt.NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array

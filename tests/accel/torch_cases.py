"""What the tests of the Torch backend share: poisoned memory, and calls of every operation on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from lowbit.conformance import calls  # noqa: E402

HALVES = ("float16", "bfloat16")
DTYPES = (*HALVES, "float32", "float64")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN (integers: of a wild value), so that reading it before writing shows."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            if x.device.type != "meta":
                x.fill_(torch.nan if x.is_floating_point() else x.dtype != torch.bool and torch.iinfo(x.dtype).min)
            return x

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


def weights(seed: int, *shape: int, dtype: str = "float64") -> Tensor:
    """Gaussian numbers."""
    x = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(np.asarray(x)).to(getattr(torch, dtype))


def moment(seed: int, k: int, *, dead: tuple[int, ...] = (), dtype: str = "float64") -> Tensor:
    """A second moment of inputs with widely different and correlated channels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * k, k)) @ (np.eye(k) + 0.3 * rng.normal(size=(k, k))) * np.exp(rng.normal(size=k))
    x[:, list(dead)] = 0.0
    return torch.from_numpy(x.T @ x).to(getattr(torch, dtype))


NAMED = calls.named()


def case(name: str, dtype: str, change: Callable[[Tensor], Tensor] = lambda t: t) -> calls.Call:
    """A call of the kit on fresh tensors, floats in one dtype; those of moments are float64 by definition."""
    call = NAMED[name]
    cast = call.op not in ("moment_merge", "moment_total")

    def own(x: calls.Array) -> Tensor:
        t = torch.from_numpy(x.copy())
        return change(t.to(getattr(torch, dtype)) if cast and t.is_floating_point() else t)

    return call._replace(arrays=calls.each(call.arrays, own))


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (tuple, list)) else []


def float64(x: Tensor) -> npt.NDArray[np.float64]:
    """The same numbers in NumPy's float64."""
    return np.asarray(x.to(torch.float64).numpy())

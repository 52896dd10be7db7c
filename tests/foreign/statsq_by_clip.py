"""StatsQ as a module cast to the dtype of its weight computes it: our own few lines, with the clip before the rounding.

They mimic two defects of published code: in half precision the upper clip 1 - 1e-6 is 1, and a row of zeros is divided
by its scale. Nothing is repaired; answers are handed over in float32 at least, as the contract wants them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit.reference.errors import Unsupported
from lowbit.reference.types import StatsCode

name, compute_dtype, device = "statsq-by-clip", "float32", "cpu"


def asarray(x: Any, /) -> Tensor:
    """NumPy to torch, a copy."""
    return torch.from_numpy(np.array(x))


def to_numpy(x: Tensor, /) -> Any:
    """Torch to NumPy."""
    return x.detach().numpy()


def statsq(w: Tensor, /, *, bits: int) -> StatsCode[Tensor]:
    """Everything in the dtype of the weight."""
    shared = [axis for axis in range(w.ndim) if axis != w.ndim - 2]
    step, n = 2 * w.abs().mean(dim=shared, keepdim=True), 2 ** (bits - 1)
    clipped = (w / step).clamp(-1, torch.tensor(1 - 1e-6).to(w.dtype).item())
    codes = torch.round(clipped * n - 0.5)
    wide = torch.promote_types(w.dtype, torch.float32)
    values = step * (codes + 0.5) / n
    return StatsCode(values.to(wide), codes.nan_to_num().to(torch.int32), step.to(wide))


def statsq_grad(w: Tensor, grad: Tensor, /, *, bits: int, path: str = "straight-through") -> Tensor:
    """Autograd's answer to the straight-through form; the other path is not offered."""
    if path != "straight-through":
        raise Unsupported("the scale is detached")
    values = statsq(w, bits=bits).values
    leaf = w.to(values.dtype, copy=True).requires_grad_()
    (values.nan_to_num() - leaf.detach() + leaf).backward(grad.to(leaf.dtype))
    assert leaf.grad is not None
    return leaf.grad

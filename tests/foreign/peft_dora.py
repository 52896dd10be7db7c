"""PEFT's DoRA layers as a backend: the arrays go into their modules, and what the modules compute comes out.

Nothing is repaired on the way. What PEFT has no way to do is :class:`Unsupported`; weights in half precision go in as
float32, as its own code does at initialisation.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowbit.reference.errors import Unsupported
from lowbit.reference.types import DoraGradient, DoraMerged

name, compute_dtype, device = "peft-dora", "float32", "cpu"


def asarray(x: Any, /) -> Tensor:
    """NumPy to torch, a copy."""
    return torch.from_numpy(np.array(x))


def to_numpy(x: Tensor, /) -> Any:
    """Torch to NumPy."""
    return x.detach().numpy()


class Given(nn.Module):
    """A dropout that was drawn elsewhere."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        """What was drawn, whatever comes in."""
        return self.result


def layer(w: Tensor, rank: int, layout: str, bias: Tensor | None = None) -> Any:
    """PEFT's layer around a frozen weight, as ``get_peft_model`` makes it."""
    if rank < 1:
        raise Unsupported("PEFT refuses rank 0")
    if w.numel() == 0:
        raise Unsupported("PEFT initialises A by its fan-in, which an empty weight does not have")
    w = w if w.dtype == torch.float64 else w.float()
    base: Any
    if layout == "transposed":
        base = Conv1D(w.shape[1], w.shape[0])
    elif layout == "conv":
        kind: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[w.ndim]
        base = kind(w.shape[1], w.shape[0], tuple(w.shape[2:]), bias=bias is not None)
    else:
        base = nn.Linear(w.shape[1], w.shape[0], bias=bias is not None)
    base.weight = nn.Parameter(w.clone())
    if base.bias is not None:
        base.bias = nn.Parameter(torch.zeros(base.bias.shape, dtype=w.dtype) if bias is None else bias.to(w.dtype))
    config = LoraConfig(r=rank, use_dora=True, target_modules=["0"], fan_in_fan_out=layout == "transposed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(nn.Sequential(base), config)  # type: ignore[arg-type]
    return model.base_model.model[0].to(w.dtype)


def filled(
    w: Tensor, b: Tensor, a: Tensor, magnitude: Tensor, scaling: float, layout: str, bias: Tensor | None = None
) -> Any:
    """The layer with its trained parts set."""
    found = layer(w, a.shape[0], layout, bias)
    with torch.no_grad():
        found.lora_A["default"].weight.copy_(a)
        found.lora_B["default"].weight.copy_(b)
        own = found.lora_magnitude_vector["default"].weight
        own.copy_(magnitude.reshape(own.shape))
    found.scaling["default"] = scaling
    return found


def dora_magnitude(w: Tensor, /, *, layout: str = "linear") -> Tensor:
    """What the magnitude is initialised to."""
    found: Tensor = layer(w, 1, layout).lora_magnitude_vector["default"].weight
    return found.detach().reshape(-1)


def dora_norm(w: Tensor, b: Tensor, a: Tensor, /, *, scaling: float, layout: str = "linear") -> Tensor:
    """``get_weight_norm`` as the forward pass calls it."""
    rows = w.shape[1] if layout == "transposed" else w.shape[0]
    found = filled(w, b, a, torch.ones(rows, dtype=w.dtype), scaling, layout)
    part = found.lora_magnitude_vector["default"]
    delta = part.get_lora_weight(lora_A=found.lora_A["default"], lora_B=found.lora_B["default"])
    weight = found.get_base_layer().weight
    own = weight.mT if layout == "transposed" else weight  # its own linear layer transposes inside
    norm: Tensor = part.get_weight_norm(weight, delta.detach().reshape(own.shape), scaling)
    return norm.detach().reshape(-1)


def dora_weight(
    w: Tensor, b: Tensor, a: Tensor, magnitude: Tensor, /, *, scaling: float, layout: str = "linear"
) -> Tensor:
    """The weight after ``merge``."""
    return dora_merge(w, b, a, magnitude, scaling=scaling, layout=layout).weight


def dora_forward(
    x: Tensor,
    dropped: Tensor,
    w: Tensor,
    bias: Tensor,
    b: Tensor,
    a: Tensor,
    magnitude: Tensor,
    /,
    *,
    scaling: float,
    layout: str = "linear",
) -> Tensor:
    """The layer's output, its dropout replaced by the result of ours."""
    found = filled(w, b, a, magnitude, scaling, layout, bias)
    kind = found.get_base_layer().weight.dtype
    if not torch.equal(x, dropped):
        found.lora_dropout["default"] = Given(dropped.to(kind))
        found.train()
    y: Tensor = found(x.to(kind))
    return y.detach()


def dora_gradient(
    grad: Tensor,
    w: Tensor,
    b: Tensor,
    a: Tensor,
    magnitude: Tensor,
    /,
    *,
    scaling: float,
    detach: bool = True,
    layout: str = "linear",
) -> DoraGradient[Tensor]:
    """Autograd through the layer on unit inputs, whose outputs are the columns of the weight."""
    if not detach:
        raise Unsupported("PEFT always takes the norm as a constant")
    found = filled(w, b, a, magnitude, scaling, layout)
    weight = found.get_base_layer().weight
    k = w.shape[0] if layout == "transposed" else w.shape[1:].numel()
    units = torch.eye(k, dtype=weight.dtype)
    y = found(units.reshape(k, *w.shape[1:]) if layout == "conv" else units)
    wanted = grad if layout == "transposed" else grad.reshape(grad.shape[0], k).mT
    y.backward(wanted.to(weight.dtype).reshape(y.shape))
    part = found.lora_magnitude_vector["default"].weight
    return DoraGradient(found.lora_B["default"].weight.grad, found.lora_A["default"].weight.grad, part.grad.reshape(-1))


def dora_merge(
    w: Tensor, b: Tensor, a: Tensor, magnitude: Tensor, /, *, scaling: float, layout: str = "linear"
) -> DoraMerged[Tensor]:
    """``merge``, and the quotient of the magnitude and the norm that it keeps."""
    found = filled(w, b, a, magnitude, scaling, layout)
    found.merge()
    own = found.lora_magnitude_vector["default"].weight.reshape(-1)
    norm = found._cache_pop("default-weight_norm").reshape(-1)
    return DoraMerged(found.get_base_layer().weight.detach(), (own / norm).detach())


def dora_unmerge(
    merged: Tensor, b: Tensor, a: Tensor, factor: Tensor, /, *, scaling: float, layout: str = "linear"
) -> Tensor:
    """``unmerge`` of a layer that has merged with this factor."""
    found = filled(merged, b, a, factor, scaling, layout)
    part = found.lora_magnitude_vector["default"].weight
    found._cache_store("default-weight_norm", torch.ones_like(part))
    found.merged_adapters.append("default")
    found.unmerge()
    weight: Tensor = found.get_base_layer().weight
    return weight.detach()

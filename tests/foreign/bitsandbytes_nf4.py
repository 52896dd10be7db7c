"""bitsandbytes' NF4 as a backend: quantize_4bit, dequantize_4bit, matmul_4bit, and what compress_statistics does.

Nothing is repaired on the way. What bitsandbytes has no way to do, such as another table of levels, is
:class:`Unsupported`. ``configure(kernel="linear")`` takes the product of ``Linear4bit`` in evaluation instead, which
rearranges the weights for its AVX-512 kernel.
"""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional
from torch import Tensor

from lowbit.reference.errors import Unsupported
from lowbit.reference.types import DoubleScale

name, compute_dtype, device = "bitsandbytes-nf4", "float32", "cpu"
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends a download on import

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def asarray(x: Any, /) -> Tensor:
    """NumPy to torch, a copy."""
    return torch.from_numpy(np.array(x))


def to_numpy(x: Tensor, /) -> Any:
    """Torch to NumPy."""
    return x.detach().numpy()


def table(kind: str) -> Tensor:
    """The levels that it ships, in float32."""
    found: Tensor = functional.create_dynamic_map() if kind == "dynamic" else functional.get_4bit_type("nf4", "cpu")
    return found


def only(kind: str, levels: Tensor, block_size: int, *values: Tensor) -> None:
    """Refuse what its functions do not take: other levels (beyond their last digit), blocks, or float64."""
    own = table(kind)
    if levels.shape != own.shape or float((levels.double() - own.double()).abs().max()) > 2.0**-20:
        raise Unsupported(f"bitsandbytes has the {kind} table only")
    if block_size not in SIZES:
        raise Unsupported(f"bitsandbytes has blocks of {SIZES[0]} to {SIZES[-1]}, powers of two")
    if any(v.dtype == torch.float64 for v in values):
        raise Unsupported("bitsandbytes has no float64")


def normal_float(*, bits: int, offset: float = 0.9677083) -> Tensor:
    """The table of NF4."""
    if bits != 4 or offset != 0.9677083:
        raise Unsupported("bitsandbytes has NF4 only")
    return table("nf4").double()


def dynamic_float(*, bits: int) -> Tensor:
    """The signed dynamic map."""
    if bits != 8:
        raise Unsupported("bitsandbytes fills other widths up to 256 levels with zeros")
    return table("dynamic").double()


def quantized(x: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``quantize_4bit``, the high half of a byte first."""
    only("nf4", table("nf4"), block_size, x)
    packed, state = functional.quantize_4bit(x.contiguous(), blocksize=block_size, quant_type="nf4")
    pairs = packed.reshape(-1).to(torch.int32)
    codes = torch.stack([pairs >> 4, pairs & 15], dim=1).reshape(-1)[: x.numel()]
    return codes.reshape(x.shape), state.absmax


def block_scale(x: Tensor, /, *, block_size: int = 64) -> Tensor:
    """What it keeps as ``absmax``."""
    return quantized(x, block_size)[1]


def quantize_blocks(x: Tensor, scale: Tensor, levels: Tensor, /, *, block_size: int = 64) -> Tensor:
    """Codes with its own scales, which must be those given."""
    only("nf4", levels, block_size, x, scale)
    codes, own = quantized(x, block_size)
    if not torch.equal(own, scale):
        raise Unsupported("bitsandbytes takes the scales from x itself")
    return codes


def state_of(codes: Tensor, scale: Tensor, block_size: int) -> tuple[Tensor, Any]:
    """Codes as bytes, and the quantization state that goes with them."""
    flat = codes.reshape(-1).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(flat.numel() % 2)]).reshape(-1, 2)
    state = functional.QuantState(
        absmax=scale.float().contiguous(), shape=codes.shape, code=table("nf4"), blocksize=block_size,
        quant_type="nf4", dtype=torch.float32,
    )  # fmt: skip
    return (flat[:, :1] << 4 | flat[:, 1:]).contiguous(), state


def dequantize_blocks(codes: Tensor, scale: Tensor, levels: Tensor, /, *, block_size: int = 64) -> Tensor:
    """``dequantize_4bit``."""
    only("nf4", levels, block_size, scale)
    found: Tensor = functional.dequantize_4bit(*state_of(codes, scale, block_size))
    return found.reshape(codes.shape)


def quantize_scale(scale: Tensor, levels: Tensor, /, *, block_size: int = 256) -> DoubleScale[Tensor]:
    """The two lines of ``compress_statistics``."""
    only("dynamic", levels, block_size, scale)
    offset = scale.mean()
    codes, state = functional.quantize_blockwise(scale - offset, blocksize=block_size)
    return DoubleScale(codes.to(torch.int32), state.absmax, offset)


def dequantize_scale(
    codes: Tensor, scale: Tensor, offset: Tensor, levels: Tensor, /, *, block_size: int = 256
) -> Tensor:
    """``dequantize_blockwise``, and the offset."""
    only("dynamic", levels, block_size, scale, offset)
    state = functional.QuantState(absmax=scale, code=table("dynamic"), blocksize=block_size, dtype=torch.float32)
    found: Tensor = functional.dequantize_blockwise(codes.to(torch.uint8), state) + offset
    return found


def product(
    x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, bits: int, block_size: int, linear: bool
) -> Tensor:
    """``matmul_4bit`` with the plain layout, or with that of ``Linear4bit`` in evaluation."""
    if bits != 4:
        raise Unsupported("bitsandbytes has 4 bits only")
    only("nf4", levels, block_size, x, scale)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = (words[:, :, None] >> shifts & 15).reshape(words.shape[0], -1)[:, : x.shape[1]]
    packed, state = state_of(codes, scale, block_size)
    if linear:
        if codes.shape[0] % 32 or codes.shape[1] % block_size:
            raise Unsupported("the AVX-512 kernel takes multiples of 32 rows and of a block")
        packed, state = functional._convert_weight_packed_for_cpu(packed, copy.copy(state))
    with torch.no_grad():
        found: Tensor = bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state)
    return found


def codebook_matmul(
    x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, /, *, bits: int, block_size: int = 64
) -> Tensor:
    """``matmul_4bit`` as training uses it."""
    return product(x, words, scale, levels, bits, block_size, False)


def configure(kernel: str = "plain") -> Any:
    """The same operations with another product."""

    def linear(
        x: Tensor, words: Tensor, scale: Tensor, levels: Tensor, /, *, bits: int, block_size: int = 64
    ) -> Tensor:
        return product(x, words, scale, levels, bits, block_size, True)

    members = {k: v for k, v in globals().items() if not k.startswith("_")}
    return SimpleNamespace(**{**members, **({"codebook_matmul": linear} if kernel == "linear" else {})})

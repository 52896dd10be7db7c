"""Round to nearest and pack one layer: the library's backends against the same thing in plain torch.

The baseline is what one would write by hand: reshape into groups, minimum and maximum, divide, round, clamp, and
shift the codes into 32-bit words. It computes the same clauses (Q-2, Q-3, Q-6), so codes must agree except where
x / s + z lies within rounding error of a half-integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit

GROUP = 128


def plain_torch(w: torch.Tensor, *, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Asymmetric codes per group as a dense bit stream: words (m, k·bits/32), scale (m, k/group), zero point."""
    m, k = w.shape
    top = 2**bits - 1
    x = w.view(m, k // group, group)
    low = x.amin(-1, keepdim=True).clamp_(max=0)
    high = x.amax(-1, keepdim=True).clamp_(min=0)
    scale = (high - low) / top
    scale[scale == 0] = 2 / top
    zero = torch.round(-low / scale)
    codes = torch.clamp(torch.round(x / scale) + zero, 0, top).to(torch.int32).view(m, k // 32, 32)
    words = torch.zeros((m, k // 32, bits), dtype=torch.int32)
    for j in range(32):  # 32 codes fill exactly `bits` words
        word, shift = divmod(j * bits, 32)
        words[..., word] |= codes[..., j] << shift
        if shift + bits > 32:
            words[..., word + 1] |= codes[..., j] >> (32 - shift)
    return words.view(m, -1), scale.squeeze(-1), zero.squeeze(-1).to(torch.int32)


def with_backend(backend: Any, w: Any, *, bits: int, group: int) -> tuple[Any, Any, Any]:
    """The same through three operations of the contract."""
    grid = backend.fit_grid(w, bits=bits, granularity="group", group_size=group)
    codes = backend.quantize(w, grid.scale, grid.zero_point, bits=bits)
    return backend.pack(codes, bits=bits), grid.scale, grid.zero_point


def read_bits(words: np.ndarray, *, bits: int, length: int) -> np.ndarray:
    """Codes of a dense bit stream, read one bit at a time: slow, obvious, and shared with nobody."""
    stream = np.unpackbits(np.ascontiguousarray(words.astype("<i4")).view(np.uint8), axis=1, bitorder="little")
    planes = stream[:, : length * bits].reshape(len(words), length, bits)
    return (planes.astype(np.int32) << np.arange(bits, dtype=np.int32)).sum(-1, dtype=np.int32)


def gate(results: dict[str, Any], *, w: np.ndarray, bits: int, group: int) -> dict[str, float]:
    """Codes equal but for ties, scales equal to rounding error, and the error of the layer in float64."""
    figures: dict[str, float] = {}
    u = 2.0**-24
    k = w.shape[1]
    base = None
    for name, (words, scale, zero) in results.items():
        words_, scale_, zero_ = np.asarray(words), np.asarray(scale, dtype=np.float64), np.asarray(zero)
        codes = read_bits(words_, bits=bits, length=k)
        step = np.repeat(scale_, group, axis=1)
        restored = step * (codes - np.repeat(zero_, group, axis=1))
        error = float(((restored - w) ** 2).sum() / (w.astype(np.float64) ** 2).sum())
        if base is None:
            base = (codes, scale_, zero_)
            figures["relative squared error"] = error
            continue
        assert np.all(np.abs(scale_ - base[1]) <= 4 * u * base[1]), f"{name}: scales differ by more than rounding"
        differ = (codes != base[0]) & np.repeat(zero_ == base[2], group, axis=1)
        ratio = np.abs(w / step)
        off = np.abs(ratio - np.floor(ratio) - 0.5)  # distance from a half-integer
        assert np.all(off[differ] <= 8 * u * ratio[differ]), f"{name}: a code differs away from a tie"
        assert np.all(np.abs(codes - base[0])[differ] <= 1), f"{name}: a code differs by more than 1"
        figures[f"{name}: codes that differ"] = int(differ.sum())
        figures[f"{name}: error / baseline's"] = error / figures["relative squared error"]
    return figures


def cases(*, quick: bool) -> Iterator[Case]:
    """3 and 4 bits, groups of 128, on one square layer."""
    size = 1024 if quick else 4096
    rng = np.random.default_rng(0)
    w = rng.standard_normal((size, size), dtype=np.float32) * rng.lognormal(size=(size, 1)).astype(np.float32)
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    tensor = torch.from_numpy(w)
    for bits in (4, 3):
        options = {"bits": bits, "group": GROUP}
        yield Case(
            name=f"{size} x {size}, {bits} bits, groups of {GROUP}",
            baseline="plain torch",
            contenders={
                "plain torch": partial(plain_torch, tensor, **options),
                "lowbit numba": partial(with_backend, numba, numba.asarray(w), **options),
                "lowbit torch": partial(with_backend, torch_, torch_.asarray(w), **options),
            },
            gate=partial(gate, w=w, **options),
            repeats=3 if quick else 9,
            memory=True,
        )

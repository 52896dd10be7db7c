"""GPTQ of one layer: the library's backends against the published loop in plain torch.

The baseline follows the published algorithm statement by statement: blocks of 128 columns, one rank-1 update of the
rest of the block per column, one matrix product for the columns after the block. It is timed with the Hessian given,
as the others are, and pays for its own Cholesky factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit

BLOCK = 128


def plain_torch(
    weight: torch.Tensor, hessian: torch.Tensor, *, bits: int, group: int, damping: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """Asymmetric GPTQ, groups along the input axis with scales from the weights at the group's start.

    Shapes: weight (m, k), hessian (k, k) → codes int32 (m, k), dequantized weight (m, k).
    """
    w, h = weight.clone(), hessian.clone()
    m, k = w.shape
    top = 2**bits - 1
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(damping * torch.diag(h).mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    factor = torch.linalg.cholesky(inverse, upper=True)

    codes = torch.zeros((m, k), dtype=torch.int32)
    restored = torch.zeros_like(w)
    scale = zero = torch.zeros((m, 1))
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        block = w[:, start:stop].clone()
        errors = torch.zeros_like(block)
        local = factor[start:stop, start:stop]
        for i in range(stop - start):
            if (start + i) % group == 0:
                part = w[:, start + i : start + i + group]
                low = part.amin(1, keepdim=True).clamp(max=0)
                high = part.amax(1, keepdim=True).clamp(min=0)
                flat = (low == 0) & (high == 0)
                low, high = torch.where(flat, -1, low), torch.where(flat, 1, high)
                scale = (high - low) / top
                zero = torch.round(-low / scale)
            column = block[:, i].unsqueeze(1)
            q = torch.clamp(torch.round(column / scale) + zero, 0, top)
            codes[:, start + i] = q.flatten().to(torch.int32)
            value = scale * (q - zero)
            restored[:, start + i] = value.flatten()
            error = (column - value) / local[i, i]
            block[:, i:] -= error @ local[i, i:].unsqueeze(0)
            errors[:, i] = error.flatten()
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes, restored


def with_backend(backend: Any, w: Any, h: Any, *, bits: int, group: int) -> tuple[Any, Any]:
    """The same through one operation of the contract."""
    result = backend.gptq(w, h, bits=bits, group_size=group, block_size=BLOCK)
    return result.codes, result.weight


def hessian(rng: np.random.Generator, k: int, tokens: int) -> np.ndarray:
    """2/T·XᵀX of inputs with a decaying spectrum and a few loud channels, as in a language model."""
    mixing = np.linalg.qr(rng.standard_normal((k, 64)))[0].astype(np.float32)
    x = rng.standard_normal((tokens, k), dtype=np.float32)
    x += (
        rng.standard_normal((tokens, 64), dtype=np.float32) * (8 / np.sqrt(np.arange(1, 65, dtype=np.float32)))
    ) @ mixing.T
    x *= rng.lognormal(sigma=0.5, size=k).astype(np.float32)
    return (x.T @ x) * np.float32(2 / tokens)


def gate(results: dict[str, Any], *, w: np.ndarray, h: np.ndarray, bits: int, rtn: float) -> dict[str, float]:
    """Hessian-weighted losses within 1e-4 of the baseline's, and codes that agree almost everywhere.

    One code that rounds the other way changes every later column of its row, so rows drift apart; the loss may not.
    """
    figures: dict[str, float] = {}
    double, base, first = h.astype(np.float64), None, None
    for name, (codes, weight) in results.items():
        codes_ = np.asarray(codes)
        assert 0 <= codes_.min() <= codes_.max() <= 2**bits - 1, f"{name}: a code leaves its range"
        error = w - np.asarray(weight, dtype=np.float64)
        loss = float(np.einsum("ij,ij->", error @ double, error))
        if base is None or first is None:
            base, first = loss, codes_
            figures["loss / loss of rounding to nearest"] = loss / rtn
            continue
        assert abs(loss - base) <= 1e-4 * base, f"{name}: loss {loss:.8g} instead of {base:.8g}"
        equal = float((codes_ == first).mean())
        assert equal >= 0.95, f"{name}: only {equal:.1%} of the codes agree"
        figures[f"{name}: loss / baseline's - 1"] = loss / base - 1
        figures[f"{name}: share of equal codes"] = equal
    return figures


def round_to_nearest_loss(w: np.ndarray, h: np.ndarray, *, bits: int, group: int) -> float:
    """The loss without GPTQ, so that a gate of five equal failures would show."""
    x = w.astype(np.float64).reshape(len(w), -1, group)
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    error = (x - scale * (np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1) - zero)).reshape(w.shape)
    return float(np.einsum("ij,ij->", error @ h.astype(np.float64), error))


def cases(*, quick: bool) -> Iterator[Case]:
    """One square layer at 4 bits and groups of 128."""
    size, bits, group = (512 if quick else 4096), 4, 128
    rng = np.random.default_rng(0)
    w = rng.standard_normal((size, size), dtype=np.float32) * rng.lognormal(sigma=0.3, size=(size, 1)).astype(
        np.float32
    )
    h = hessian(rng, size, 2 * size)
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    options = {"bits": bits, "group": group}
    yield Case(
        name=f"{size} x {size}, {bits} bits, groups of {group}",
        baseline="plain torch",
        contenders={
            "plain torch": partial(plain_torch, torch.from_numpy(w), torch.from_numpy(h), **options),
            "lowbit numba": partial(with_backend, numba, numba.asarray(w), numba.asarray(h), **options),
            "lowbit torch": partial(with_backend, torch_, torch_.asarray(w), torch_.asarray(h), **options),
        },
        gate=partial(gate, w=w, h=h, bits=bits, rtn=round_to_nearest_loss(w, h, bits=bits, group=group)),
        repeats=3 if quick else 5,
        memory=True,
    )

"""Binary codes: fitting one layer, and its product with one input and with many, against torch.

Fitting is compared with the same algorithm written as one would in plain torch: planes as a tensor of signs, batched
normal equations, nearest of the 2^q levels. The product is compared with a dense product of the same weight in
float32 and bfloat16. Weights are *cold*: every product reads another copy, and all copies together are larger than any
cache, as in a model that generates token after token. Both kernels of the CPU backend are timed, and the name of a
contender says which one ran.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit
from lowbit.reference.types import BinaryCode

GROUP = 128
COLD = 640 * 2**20  # bytes of all copies of a weight
PRODUCTS = 8  # in one timed call, each with another copy


def plain_torch(w: torch.Tensor, *, bits: int, group: int, rounds: int) -> BinaryCode[torch.Tensor]:
    """Greedy start, then rounds of batched least squares and nearest levels, row block by row block."""
    m, k = w.shape
    combinations = torch.arange(2**bits)
    table = (2 * ((combinations[:, None] >> torch.arange(bits)) & 1) - 1).float()  # (2^q, q)
    codes, scales = [], []
    for block in w.view(m, k // group, group).split(max(1, 2**20 // k)):
        residual, planes = block.clone(), []
        for _ in range(bits):
            planes.append(torch.where(residual >= 0, 1.0, -1.0))
            residual -= residual.abs().mean(-1, keepdim=True) * planes[-1]
        signs = torch.stack(planes, -1)  # (rows, groups, g, q)
        ridge = 1e-6 * torch.eye(bits)

        def solve(signs: torch.Tensor, v: torch.Tensor = block, ridge: torch.Tensor = ridge) -> torch.Tensor:
            gram = signs.mT @ signs + ridge
            return torch.linalg.solve(gram, (signs.mT @ v[..., None]))[..., 0]

        for _ in range(rounds):
            level = solve(signs) @ table.T  # (rows, groups, 2^q)
            value, order = level.sort(-1)
            middle = (value[..., 1:] + value[..., :-1]) / 2
            place = torch.searchsorted(middle, block, right=True)
            signs = table[order.gather(-1, place)]
        scales.append(solve(signs))
        codes.append(
            ((signs > 0).int() << torch.arange(bits, dtype=torch.int32)).sum(-1, dtype=torch.int32).view(-1, k)
        )
    return BinaryCode(torch.cat(codes), torch.cat(scales), None)


def fit_gate(results: dict[str, Any], *, w: np.ndarray, tolerance: float) -> dict[str, float]:
    """The same relative squared error, by values computed one bit at a time."""
    figures: dict[str, float] = {}
    least = None
    for name, (codes, scale, _) in results.items():
        c, s = np.asarray(codes), np.asarray(scale, np.float64)
        spread = np.repeat(s, w.shape[1] // s.shape[1], axis=1)
        value = sum(spread[..., i] * (2 * ((c >> i) & 1) - 1) for i in range(s.shape[2]))
        error = float(((value - w) ** 2).sum() / (w.astype(np.float64) ** 2).sum())
        figures[f"{name}: relative squared error"] = error
        least = error if least is None else least
        assert abs(error / least - 1) <= tolerance, f"{name}: error {error}, baseline {least}"
    return figures


def product_gate(results: dict[str, Any], *, expected: np.ndarray, reach: np.ndarray) -> dict[str, float]:
    """Every output within the rounding of its precision; bfloat16 rounds the weight itself."""
    figures = {}
    for name, found in results.items():
        error = np.abs(np.asarray(found, np.float64) - expected)
        u = 2.0**-7 if "bfloat16" in name else 2.0**-18
        assert (error <= u * reach).all(), f"{name}: off by {float((error / reach).max()):.3g} of the sum of magnitudes"
        figures[f"{name}: relative error"] = float(np.abs(error).max() / np.abs(expected).max())
    return figures


def copies(size: int, make: Callable[[], Any]) -> Iterator[Any]:
    """Copies of a weight of ``size`` bytes, for ever in turn."""
    return itertools.cycle([make() for _ in range(max(2, -(-COLD // size)))])


def several(weights: Iterator[Any], product: Callable[[Any], Any]) -> Any:
    """A few products, each with the next copy; the last result."""
    found = None
    for _ in range(PRODUCTS):
        found = product(next(weights))
    return found


def product_case(m: int, k: int, bits: int, group: int | None, tokens: int, repeats: int) -> Case:
    """One weight, one number of inputs."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (m, k), dtype=np.int32)
    groups = 1 if group is None else k // group
    scale = rng.uniform(0.5, 1.5, (m, groups, bits)).astype(np.float32) * 2.0 ** -np.arange(bits, dtype=np.float32)
    x = rng.standard_normal((tokens, k)).astype(np.float32)
    backends: dict[str, Any] = {"auto": lowbit.load("numba"), "portable": lowbit.load("numba", kernels="portable")}
    packed = backends["auto"].bcq_pack(codes, scale, None)
    dense = backends["auto"].bcq_weight(codes, scale, None)
    expected = x.astype(np.float64) @ dense.T.astype(np.float64)
    reach = np.abs(x).astype(np.float64) @ np.abs(dense).T.astype(np.float64)
    inputs = torch.from_numpy(x)
    contenders: dict[str, Callable[[], Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        own, given = torch.from_numpy(dense).to(dtype), inputs.to(dtype)
        weights = copies(own.numel() * own.element_size(), own.clone)
        name = str(dtype).replace("torch.", "torch ")
        contenders[name] = partial(several, weights, lambda w, v=given: (v @ w.T).float())
    size = packed.planes.nbytes + packed.scale.nbytes
    planes = copies(size, lambda: (packed.planes.copy(), packed.scale.copy(), None))
    seen = set()
    for ops in backends.values():
        path = ops.product_path(inputs=tokens, bits=bits)
        if path not in seen:
            contenders[f"lowbit numba, {path}"] = partial(several, planes, lambda p, ops=ops: ops.bcq_product(x, *p))
        seen.add(path)
    about = "rows" if group is None else f"groups of {group}"
    return Case(
        name=f"product, {m} x {k}, {bits} planes, {about}, {tokens} input{'s' if tokens > 1 else ''}",
        baseline="torch float32",
        contenders=contenders,
        gate=partial(product_gate, expected=expected, reach=reach),
        repeats=repeats,
        note=f"{PRODUCTS} products per time, cold weights; {size / 2**20:.1f} MiB of planes and scales each",
    )


def cases(*, quick: bool) -> Iterator[Case]:
    """Fitting a square layer, then products of one and of many inputs."""
    size = 512 if quick else 4096
    rng = np.random.default_rng(0)
    w = rng.standard_normal((size, size), dtype=np.float32)
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    for rounds in (15,) if quick else (1, 15):
        options: dict[str, Any] = {"bits": 3, "rounds": rounds}
        yield Case(
            name=f"fit, {size} x {size}, 3 planes, groups of {GROUP}, {rounds} rounds",
            baseline="plain torch",
            contenders={
                "plain torch": partial(plain_torch, torch.from_numpy(w), group=GROUP, **options),
                "lowbit numba": partial(numba.bcq, w, group_size=GROUP, **options),
                "lowbit torch": partial(torch_.bcq, torch.from_numpy(w), group_size=GROUP, **options),
            },
            gate=partial(fit_gate, w=w, tolerance=1e-4),
            repeats=2 if quick else 3,
            memory=True,
        )
    shapes = ((256, 512),) if quick else ((4096, 4096), (11008, 4096))
    for m, k in shapes:
        for bits, group in itertools.product((1, 2, 3), (None, GROUP)):
            yield product_case(m, k, bits, group, 1, 3 if quick else 15)
    yield product_case(*shapes[0], 3, GROUP, 32, 3 if quick else 9)

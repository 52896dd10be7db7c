"""NF4 layers: the product with packed codes, and quantization, against bitsandbytes on the CPU.

A call of the product multiplies the same tokens with a dozen layers in turn, as decoding does, so that weights come
from memory and not from a cache. Every contender has the same codes and scales. bitsandbytes has two products:
``matmul_4bit`` restores the weight and multiplies (training, and evaluation without AVX-512 BF16); ``Linear4bit`` in
evaluation rearranges the weight once for a kernel that rounds inputs, scales and results to bfloat16. Ours keep
float32 throughout. Without bitsandbytes the baseline is the dense product in float32.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Case

import lowbit

EXACT = 1e-6  # relative error in float32
ROUNDED = 2e-2  # relative error where inputs, scales and results are bfloat16
PEER = importlib.util.find_spec("bitsandbytes") is not None


def each(product: Any, layers: list[tuple[Any, ...]]) -> Any:
    """The product with every layer; the result of the last."""
    result = None
    for layer in layers:
        result = product(*layer)
    return result


def bitsandbytes_layers(codes: np.ndarray, scale: np.ndarray, count: int, *, linear: bool) -> list[tuple[Any, ...]]:
    """The same codes in bitsandbytes' layout: bytes with the first code in the high half, or rearranged."""
    from bitsandbytes import functional

    packed = torch.from_numpy((codes[:, ::2] << 4 | codes[:, 1::2]).astype(np.uint8)).reshape(-1, 1)
    table = functional.get_4bit_type("nf4", device="cpu")
    state = functional.QuantState(
        absmax=torch.from_numpy(scale.copy()), shape=torch.Size(codes.shape), code=table, blocksize=64,
        quant_type="nf4", dtype=torch.float32,
    )  # fmt: skip
    if linear:
        packed, state = functional._convert_weight_packed_for_cpu(packed, copy.copy(state))
    return [(packed.clone().t(), copy.deepcopy(state)) for _ in range(count)]


def gate(results: dict[str, Any], *, expected: np.ndarray) -> dict[str, float]:
    """Relative error of every product in float64."""
    figures = {}
    for name, y in results.items():
        got = np.asarray(y.float() if isinstance(y, torch.Tensor) else y, np.float64)
        error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
        bound = ROUNDED if "bf16" in name else EXACT
        assert error <= bound, f"{name}: relative error {error:.3g}, allowed {bound}"
        figures[f"{name}: relative error"] = error
    return figures


def product_case(tokens: int, size: int, count: int, repeats: int) -> Case:
    """One number of tokens."""
    numba, torch_ = lowbit.load("numba"), lowbit.load("torch")
    rng = np.random.default_rng(0)
    levels = numba.normal_float(bits=4)
    weight = rng.standard_normal((size, size), dtype=np.float32)
    scale = numba.block_scale(weight)
    codes = numba.quantize_blocks(weight, scale, levels)
    restored = numba.dequantize_blocks(codes, scale, levels)
    x = rng.standard_normal((tokens, size), dtype=np.float32)
    x = torch.from_numpy(x).bfloat16().float().numpy()  # the same numbers for everyone
    words = numba.pack(codes, bits=4)
    ours = [(words.copy(), scale.copy(), levels) for _ in range(count)]
    theirs = [tuple(torch.from_numpy(a) for a in layer) for layer in ours]
    dense = [(torch.from_numpy(restored.copy()),) for _ in range(count)]
    tensor, half = torch.from_numpy(x), torch.from_numpy(x).bfloat16()
    contenders = {"torch, dense float32": partial(each, lambda w: tensor @ w.T, dense)}
    if PEER:
        import bitsandbytes

        plain = bitsandbytes_layers(codes, scale, count, linear=False)
        arranged = bitsandbytes_layers(codes, scale, count, linear=True)
        for title, given, layers in (
            ("bitsandbytes matmul_4bit, float32", tensor, plain),
            ("bitsandbytes matmul_4bit, bf16", half, plain),
            ("bitsandbytes Linear4bit, bf16", half, arranged),
        ):
            if "Linear" not in title or bitsandbytes.functional.has_avx512bf16():
                multiply = lambda w, s, x=given: bitsandbytes.matmul_4bit(x, w, quant_state=s)  # noqa: E731
                contenders[title] = partial(torch.no_grad()(each), multiply, layers)
    contenders["lowbit numba"] = partial(each, lambda *layer: numba.codebook_matmul(x, *layer, bits=4), ours)
    contenders["lowbit torch"] = partial(each, lambda *layer: torch_.codebook_matmul(tensor, *layer, bits=4), theirs)
    return Case(
        name=f"product, {tokens} x {size} tokens, {count} layers of {size} x {size}",
        baseline="bitsandbytes matmul_4bit, bf16" if PEER else "torch, dense float32",
        contenders=contenders,
        gate=partial(gate, expected=x.astype(np.float64) @ restored.astype(np.float64).T),
        repeats=repeats,
    )


def quantize_gate(results: dict[str, Any], *, w: np.ndarray) -> dict[str, float]:
    """Mean squared error of the weights: that of the nearest level, for everyone."""
    levels = lowbit.load("reference").normal_float(bits=4)
    flat, figures = w.reshape(-1, 64).astype(np.float64), {}
    for name, (codes, scale) in results.items():
        restored = levels[np.asarray(codes, np.int64).reshape(-1, 64)] * np.asarray(scale, np.float64)[:, None]
        figures[f"{name}: mean squared error"] = float(((restored - flat) ** 2).mean())
    least = min(figures.values())
    for name, error in figures.items():
        assert error <= least * (1 + EXACT), f"{name} is {error:.6g}, the least is {least:.6g}"
    return figures


def quantize_case(size: int, repeats: int) -> Case:
    """Scales and codes of one layer."""
    w = np.random.default_rng(1).standard_normal((size, size), dtype=np.float32)
    tensor, contenders = torch.from_numpy(w), {}

    def plain() -> Any:
        flat = tensor.view(-1, 64)
        scale = flat.abs().amax(dim=1)
        levels = lowbit.load("torch").normal_float(bits=4).float()
        middle = (levels[1:] + levels[:-1]) / 2
        return torch.bucketize(flat / scale[:, None], middle, out_int32=True), scale

    def with_backend(backend: Any, x: Any) -> Any:
        scale = backend.block_scale(x)
        return backend.quantize_blocks(x, scale, backend.normal_float(bits=4)), scale

    contenders["plain torch"] = plain
    if PEER:
        from bitsandbytes import functional

        def peer() -> Any:
            packed, state = functional.quantize_4bit(tensor, blocksize=64, quant_type="nf4")
            return torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], dim=1), state.absmax

        contenders["bitsandbytes quantize_4bit"] = peer
    for name in ("numba", "torch"):
        backend = lowbit.load(name)
        contenders[f"lowbit {name}"] = partial(with_backend, backend, backend.asarray(w))
    return Case(
        name=f"quantize {size} x {size} in blocks of 64",
        baseline="bitsandbytes quantize_4bit" if PEER else "plain torch",
        contenders=contenders,
        gate=partial(quantize_gate, w=w),
        repeats=repeats,
    )


def cases(*, quick: bool) -> Iterator[Case]:
    """Products with 1, 4 and 32 tokens, and quantization."""
    size, count = (512, 3) if quick else (4096, 12)
    for tokens in (1, 4, 32):
        yield product_case(tokens, size, count, 3 if quick else 9)
    yield quantize_case(size, 3 if quick else 5)

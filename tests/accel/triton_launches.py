"""Every launch of every kernel, compiled for CUDA instead of run: a GPU is not needed, ptxas is.

Run as a script, not interpreted, with compute capabilities: all variants for the first, one of each kernel for others.
Arguments are CPU tensors of the types that a call would have, so what is compiled is
what a launch would compile: types, constants, warps, and the integers that are 1 and become constants.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from lowbit.accel.torch_cuda.triton import (
    binary_coding,
    codebook,
    common,
    coreset,
    distill,
    dora,
    learned_step,
    lut,
    oscillation,
    packing,
    rotation,
    ternary,
    uniform,
)

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
I8, I32, I64 = torch.int8, torch.int32, torch.int64
GRID = (2**31, 2**16, 2**16)  # programs along each axis stay below
SHARED = 99 * 1024  # bytes of a block on the smallest of these cards, compute capability 8.6

compiled: dict[str, list[str]] = {}
seen: set[Any] = set()
target = 80


def kind(value: Any) -> str:
    """Type of an argument in a signature."""
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous() or value.ndim == 2, "only dora_norm knows strides"
        return TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    assert isinstance(value, float), f"an argument is a {type(value).__name__}"
    return "fp32"


def divisible(value: Any) -> bool:
    """Whether a launch would say that a pointer or an integer is a multiple of 16."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and not isinstance(value, bool) and value % 16 == 0


def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """What ``kernel[grid](...)`` calls."""
    options = {name: named.pop(name) for name in OPTIONS if name in named}
    given = inspect.signature(self.fn).bind(*args, **named).arguments
    constants = {p.name: given[p.name] for p in self.params if p.is_constexpr}
    constants |= {name: v for name, v in given.items() if isinstance(v, int) and not isinstance(v, bool) and v == 1}
    signature = {name: "constexpr" if name in constants else kind(v) for name, v in given.items()}
    assert all(1 <= n < most for n, most in zip(grid, GRID, strict=False)), f"{self.__name__}: {grid}"
    key = (self.__name__, tuple(signature.items()), tuple(constants.items()), tuple(options.items()), target)
    if key in seen or (target != int(sys.argv[1]) and (self.__name__, target) in seen):
        return
    seen.add((self.__name__, target))
    seen.add(key)
    places = {(self.arg_names.index(name),): value for name, value in constants.items()}
    even = [name for name, v in given.items() if name not in constants and divisible(v)]
    attributes = {(self.arg_names.index(name),): [["tt.divisibility", 16]] for name in even}
    source = ASTSource(fn=self, signature=signature, constexprs=places, attrs=attributes)
    found = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    assert found.asm["cubin"]
    assert found.metadata.shared <= SHARED, f"{self.__name__} wants {found.metadata.shared} bytes"
    compiled.setdefault(self.__name__, []).append(found.asm["ptx"])


def full(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    """A tensor of ones."""
    return torch.ones(shape, dtype=dtype)


def uniform_launches() -> Iterator[Callable[[], Any]]:
    """Chapter Q, N, D, B, H."""
    for dtype in (F32, BF16, F64):
        scale = full(4, 2, dtype=F64 if dtype == F64 else F32)
        yield lambda dtype=dtype, scale=scale: uniform.quantize(
            full(4, 96, dtype=dtype), scale, full(4, 2, dtype=I32), 0, 7
        )
        yield lambda scale=scale: uniform.dequantize(full(4, 96, dtype=I32), scale, full(4, 2, dtype=I32), scale.dtype)
    for padded in (False, True):
        width = 20 if padded else 18
        yield lambda padded=padded, width=width: packing.pack(full(4, 191, dtype=I32), 3, padded, width)
        words = full(4, width, dtype=I32)
        yield lambda padded=padded, words=words: packing.unpack(words, 3, padded, 191)
        grid = full(4, 2), full(4, 2, dtype=I32)
        yield lambda padded=padded, words=words, grid=grid: packing.dequantize_packed(
            words, *grid, 3, padded, 190, 4, F32
        )
    for dtype in (F32, BF16, F64):
        yield lambda dtype=dtype: dora.dora_norm(full(9, 300, dtype=dtype), full(9, 2), full(2, 300))
    for tokens in (3, 20, 40):
        words, scale = full(70, 9, dtype=I32), full(140)
        yield lambda t=tokens, w=words, s=scale: codebook.codebook_matmul(full(t, 72), w, s, full(16), 4, 36)
    for size in (64, 20):
        for offset in (None, full(2, 70)):
            planes, scale = full((2 * size + 31) // 32, 3, 70, dtype=I32), full(2, 3, 70)
            yield lambda p=planes, s=scale, o=offset, n=2 * size: binary_coding.bcq_product(full(3, n), p, s, o)
    for odd, twos in ((1, 4096), (28, 512), (36, 16)):
        yield lambda odd=odd, twos=twos: rotation.hadamard_transform(full(3, odd * twos), full(odd, odd), twos)


def ternary_launches() -> Iterator[Callable[[], Any]]:
    """Chapter T: groups in a tile, and groups of several programs."""
    for n, dtype in ((70, F32), (3000, BF16), (9001, F16), (5_000_000, F32)):
        x = full(2 if n < 10**6 else 1, n, dtype=dtype)
        for which in range(4) if n == 70 else (0,):
            yield lambda x=x, which=which: ternary.ternary(x, 2.5, 1.0 if which > 1 else 0.7, which, 4)
        yield lambda x=x: ternary.min_max(x, 127, float("inf"), 0.0, True)
        yield lambda x=x: ternary.min_max(x, 255, 2.5, 1e-8, False)
        yield lambda x=x: ternary.straight_through(x, x.to(F32), 2.5)


def learned_step_launches() -> Iterator[Callable[[], Any]]:
    """Chapter S: one step, steps to rows, steps to columns, with and without an offset."""
    for shape, dtype, shifted in (
        ((1, 1, 9001), F32, False),
        ((3, 70, 65), BF16, True),
        ((70, 200, 1), F32, True),
        ((300, 40, 3), F16, False),
    ):
        x, step = full(*shape, dtype=dtype), full(shape[1])
        offset = step if shifted else None
        yield lambda x=x, s=step, o=offset, codes=shape[2] == 3: learned_step.lsq(x, s, o, -8, 7, codes)
        yield lambda x=x, s=step, o=offset: learned_step.lsq_gradient(full(*x.shape), x, s, o, 0, 15)


def oscillation_launches() -> Iterator[Callable[[], Any]]:
    """Chapter O: rows of every length, and the tracker."""
    for m, n, dtype in ((70, 33, F32), (3, 3000, BF16), (2, 9001, F16)):
        w = full(m, n, dtype=dtype)
        yield lambda w=w, with_codes=m != 3: oscillation.statsq(w, 8, with_codes)
        if m != 3:
            yield lambda w=w: oscillation.statsq_pull(w, full(*w.shape), 8)
    whole, mean, held = full(5000, dtype=I32), full(5000), full(5000, dtype=torch.bool)
    for average, rewritten in ((True, False), (False, True)):
        state = (whole, whole, mean, whole, mean, held, whole)
        yield lambda s=state, a=average, r=rewritten: oscillation.track(full(5000, dtype=I8), s, 0.01, math.inf, a, r)


def lut_launches() -> Iterator[Callable[[], Any]]:
    """Chapter L: codes of every width."""
    table = full(7, dtype=I64), full(8, dtype=I64), full(8, dtype=I64)
    for dtype, entries, right in ((I8, F32, False), (I32, I8, True), (I64, F64, False), (torch.uint8, I32, True)):
        q = full(5000, dtype=dtype)
        yield lambda q=q, right=right: lut.evaluate_codes(q, *table, right)
        yield lambda q=q, entries=entries: lut.lookup_codes(q, full(256, dtype=entries), -128)


def distill_launches() -> Iterator[Callable[[], Any]]:
    """Chapter W: rows of a few keys, and long ones."""
    for b, h, n, dtype in ((2, 2, 128, BF16), (1, 1, 600, F32)):
        scores, lengths = full(b, h, n, n, dtype=dtype), full(b, dtype=I64)
        yield lambda s=scores, lengths=lengths: distill.attention_map_loss(s, s, lengths, -18.4)


def coreset_launches() -> Iterator[Callable[[], Any]]:
    """Chapter X: few classes, a tile of them, more."""
    few, many, more = full(9, 10), full(3, 1000, dtype=BF16), full(2, 9001, dtype=F16)
    yield lambda: coreset.scores(more, full(2, 9001), full(2, dtype=I64), 0.25)
    yield lambda: coreset.scores(few, None, full(9, dtype=I64), 1.0)
    yield lambda: coreset.scores(few, few, None, 0.0)
    yield lambda: coreset.scores(many, many, full(3, dtype=I64), 0.25)


GROUPS = (
    uniform_launches,
    ternary_launches,
    learned_step_launches,
    oscillation_launches,
    lut_launches,
    distill_launches,
    coreset_launches,
)


def entries() -> set[str]:
    """Kernels that are launched: jitted functions that no other one calls."""
    package = common.__package__
    modules = [m for name, m in sys.modules.items() if name.startswith(f"{package}.") and isinstance(m, ModuleType)]
    found = {f.__name__: f for m in modules for f in vars(m).values() if isinstance(f, JITFunction)}
    called = {n for n in found for f in found.values() if re.search(rf"\b{n}\(", f.src) and f.__name__ != n}
    return set(found) - called


EXACT = (
    "_quantize",
    "_ternary_rows",
    "_ternary_parts",
    "_min_max_rows",
    "_min_max_parts",
    "_lsq",
    "_lsq_gradient",
    "_statsq",
    "_statsq_pull",
    "_scores",
)
"""Kernels whose divisions decide codes, or equalities to the last bit."""

UNFUSED = (*EXACT, "_dequantize", "_magnitudes", "_above", "_track", "_attention_map")
"""Kernels in which a product and a sum round apart."""


def exact_arithmetic() -> None:
    """No approximate division where codes depend on it, no product fused with a sum, no TF32."""
    for name in EXACT:
        for text in compiled[name]:
            assert re.search(r"div\.rn\.f(32|64)", text), name
            assert "div.full" not in text, name
            assert "div.approx" not in text, name
    for name in UNFUSED:
        assert not any("fma.rn.f32" in text for text in compiled[name]), name
    for name in ("_transform", "_codebook_matmul"):
        assert not any("tf32" in text for text in compiled[name]), name


def main() -> None:
    """Compile everything for both targets and say how many launches that were."""
    global target
    assert not common.INTERPRETED
    JITFunction.run = compile_instead
    for word in sys.argv[1:]:
        target = int(word)
        for group in GROUPS:
            for launch in group():
                launch()
    assert set(compiled) == entries(), f"not compiled: {entries() - set(compiled)}"
    exact_arithmetic()
    print(f"compiled {sum(map(len, compiled.values()))} variants of {len(compiled)} kernels")


if __name__ == "__main__":
    main()

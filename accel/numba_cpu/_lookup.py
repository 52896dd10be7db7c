"""Products by tables: the strip of one block of columns for a run of output rows.

Rows of the weight run fastest in the packed planes, so a vector register holds one word (32 columns) of as many rows
as it has lanes. With AVX-512 a table of 4 inputs, 16 sums, is one register, and one permutation looks 16 rows up:
shift, permute, add for 64 weights. Anywhere else tables of 8 inputs lie in the first-level cache and are indexed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config

from lowbit.accel.numba_cpu._jit import kernel, primitive
from lowbit.accel.numba_cpu._levels import Loop, data_of, load, prefetch, store

__all__ = ["LANES", "add_strip", "build_tables", "has_permutes", "permuted_strip", "portable_kernels"]

LANES = 16
"""Rows of a strip of :func:`permuted_strip`."""


_portable: ContextVar[bool] = ContextVar("lowbit_numba_portable", default=False)


@contextmanager
def portable_kernels(wanted: bool) -> Iterator[None]:
    """Run the products inside with the kernels that need no particular instructions."""
    token = _portable.set(wanted)
    try:
        yield
    finally:
        _portable.reset(token)


@cache
def _features() -> bool:
    host = vars(config)["CPU_NAME"] in (None, "host")
    return host and bool(llvm.get_host_cpu_features().get("avx512f"))


def has_permutes() -> bool:
    """Whether the 16-lane permutation of AVX-512 may be used: the machine compiled for has it, the caller allows it."""
    return not _portable.get() and _features()


@kernel
def four_inputs(x: Any, at: int, out: Any, o0: int) -> None:
    """:func:`build_tables` for four inputs that all count, the same sums in the same order without a loop."""
    a, b, c, d = x[at], x[at + 1], x[at + 2], x[at + 3]
    t0 = -a - b - c - d
    t1 = t0 + (a + a)
    t2, t3 = t0 + (b + b), t1 + (b + b)
    t4, t5, t6, t7 = t0 + (c + c), t1 + (c + c), t2 + (c + c), t3 + (c + c)
    out[o0], out[o0 + 1], out[o0 + 2], out[o0 + 3] = t0, t1, t2, t3
    out[o0 + 4], out[o0 + 5], out[o0 + 6], out[o0 + 7] = t4, t5, t6, t7
    out[o0 + 8], out[o0 + 9], out[o0 + 10], out[o0 + 11] = -t7, -t6, -t5, -t4
    out[o0 + 12], out[o0 + 13], out[o0 + 14], out[o0 + 15] = -t3, -t2, -t1, -t0


@kernel
def build_tables(x: Any, first: int, last: int, start: int, width: int, out: Any, o0: int, count: int) -> None:
    """``count`` tables of ``width`` inputs from column ``start`` on; columns outside first … last − 1 count as 0.

    Half of a table is built by T[i] = T[i − 2^s] + 2 x_s, the other half is its negative in reverse.
    """
    half = 1 << (width - 1)
    for c in range(count):
        at = start + c * width
        if width == 4 and first <= at and at + 4 <= last:
            four_inputs(x, at, out, o0)
            o0 += 16
            continue
        total = x.dtype.type(0)
        for s in range(width):
            if first <= at + s < last:
                total -= x[at + s]
        out[o0] = total
        for s in range(width - 1):
            step = x[at + s] + x[at + s] if first <= at + s < last else x.dtype.type(0)
            for i in range(1 << s):
                out[o0 + (1 << s) + i] = out[o0 + i] + step
        if first <= at + width - 1 < last:
            for i in range(half):
                out[o0 + 2 * half - 1 - i] = -out[o0 + i]
        else:  # the last input is none: its bit must not even change a rounding
            for i in range(half):
                out[o0 + half + i] = out[o0 + i]
        o0 += 2 * half


@kernel
def add_strip(
    planes: Any, base: int, word_step: int, plane_step: int, count: int, bits: int, rows: int,
    tables: Any, t0: int, scale: Any, s0: int, scale_step: int, sums: Any, out: Any, o0: int,
) -> None:  # fmt: skip
    """out[row] += Σ_planes scale · Σ_words of four byte tables each, by indexing; for any machine and precision."""
    for i in range(bits):
        total = sums[:rows]
        total[:] = 0
        for n in range(count):
            p0 = base + n * word_step + i * plane_step
            words = planes[p0 : p0 + rows]
            a = tables[t0 + 1024 * n : t0 + 1024 * n + 256]
            b = tables[t0 + 1024 * n + 256 : t0 + 1024 * n + 512]
            c = tables[t0 + 1024 * n + 512 : t0 + 1024 * n + 768]
            d = tables[t0 + 1024 * n + 768 : t0 + 1024 * n + 1024]
            for r in range(rows):
                word = np.uint32(words[r])
                low = a[word & np.uint32(255)] + b[(word >> np.uint32(8)) & np.uint32(255)]
                high = c[(word >> np.uint32(16)) & np.uint32(255)] + d[word >> np.uint32(24)]
                total[r] += low + high
        alpha = scale[s0 + i * scale_step : s0 + i * scale_step + rows]
        y = out[o0 : o0 + rows]
        for r in range(rows):
            y[r] += alpha[r] * total[r]


@primitive
def permuted_strip(
    typingctx: Any, planes: Any, base: Any, word_step: Any, plane_step: Any, count: Any, bits: Any, tiles: Any,
    tables: Any, t0: Any, scale: Any, s0: Any, scale_step: Any, out: Any, o0: Any, ahead: Any,
) -> Any:  # fmt: skip
    """As :func:`add_strip` for 16 · ``tiles`` rows of float32 with tables of four inputs, in AVX-512 registers.

    ``ahead``: distance in words at which the planes of the following block are fetched into the cache; 0 for none.
    """
    n64 = types.intp
    signature = types.void(planes, n64, n64, n64, n64, n64, n64, tables, n64, scale, n64, n64, out, n64, n64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i32, i64, f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
        words_t, floats_t = ir.VectorType(i32, LANES), ir.VectorType(f32, LANES)
        base_, word_step_, plane_step_, count_, bits_, tiles_ = args[1:7]
        t0_, s0_, scale_step_, o0_, ahead_ = args[8], args[10], args[11], args[13], args[14]
        planes_p, tables_p, scale_p, out_p = (data_of(context, builder, sig, args, i) for i in (0, 7, 9, 12))
        permute = builder.module.declare_intrinsic(
            "llvm.x86.avx512.permvar.sf.512", fnty=ir.FunctionType(floats_t, [floats_t, words_t])
        )
        fused = builder.module.declare_intrinsic(
            f"llvm.fma.v{LANES}f32", fnty=ir.FunctionType(floats_t, [floats_t, floats_t, floats_t])
        )

        def number(value: int) -> Any:
            return ir.Constant(i64, value)

        def vector(source: Any, index: Any, kind: Any = floats_t) -> Any:
            return load(builder, builder.gep(source, [index]), kind)

        tile = Loop(builder, tiles_, [])
        row = builder.mul(tile.step, number(LANES))
        place = builder.add(o0_, row)
        plane = Loop(builder, bits_, [vector(out_p, place)])
        start = builder.add(builder.add(base_, row), builder.mul(plane.step, plane_step_))
        word = Loop(builder, count_, [ir.Constant(floats_t, [0.0] * LANES)])
        at = builder.add(start, builder.mul(word.step, word_step_))
        keys = vector(planes_p, at, words_t)
        prefetch(builder, planes_p, builder.add(at, ahead_))
        table = builder.add(t0_, builder.mul(word.step, number(8 * LANES)))
        found = []
        for nibble in range(8):
            index = builder.lshr(keys, ir.Constant(words_t, [4 * nibble] * LANES)) if nibble else keys
            entries = vector(tables_p, builder.add(table, number(nibble * LANES)))
            found.append(builder.call(permute, [entries, index]))
        while len(found) > 1:  # in pairs: a chain of eight additions would take as long as the look-ups
            found = [builder.fadd(one, other) for one, other in zip(found[::2], found[1::2], strict=True)]
        word.close([builder.fadd(word.values[0], found[0])])
        alpha = vector(scale_p, builder.add(builder.add(s0_, row), builder.mul(plane.step, scale_step_)))
        plane.close([builder.call(fused, [alpha, word.values[0], plane.values[0]])])
        store(builder, plane.values[0], builder.gep(out_p, [place]))
        tile.close([])
        return context.get_dummy_value()

    return signature, codegen

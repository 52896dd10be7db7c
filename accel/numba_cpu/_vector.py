"""The two hand-vectorised kernels of this backend: a register tile of a matrix product, and a sum.

Everything that is a matrix product here (the lazy update of GPTQ, Cholesky factors, second moments) goes through
:func:`multiply_tile`, which keeps an (MR, NR) tile of the result in vector registers and runs along the common axis
with fused multiply-adds in index order. So every element of a product is one fixed chain of roundings: the result does
not depend on the number of threads, on the blocking, or on the vector width of the machine.

The vector width follows the CPU that Numba compiles for; compiled code is cached per CPU by Numba itself.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config

from lowbit.accel.numba_cpu._jit import primitive

__all__ = [
    "DEPTH",
    "MR",
    "NR32",
    "NR64",
    "THRESHOLDS",
    "lane_sum",
    "multiply_tile",
    "upper_sums",
    "vector_bytes",
]


def _machine() -> tuple[int, int, bool]:
    """(bytes of a vector register, rows of a register tile, has fused multiply-add) of the CPU compiled for."""
    if vars(config)["CPU_NAME"] not in (None, "host"):
        return 16, 4, False
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 8, True  # 24 sums, 3 columns and 1 broadcast value in 32 registers
    if features.get("avx2") and features.get("fma"):
        return 32, 4, True  # 12 + 3 + 1 in 16 registers
    return (16, 8, True) if features.get("neon") else (16, 4, False)


_BYTES, MR, _FUSED = _machine()
_VECTORS = 3


def vector_bytes() -> int:
    """Bytes of a vector register that kernels may use: 64 with AVX-512, 32 with AVX2 and FMA, else 16."""
    return _BYTES


NR32 = _VECTORS * _BYTES // 4
"""Columns of a float32 register tile; :data:`MR` is its rows."""
NR64 = _VECTORS * _BYTES // 8
"""Columns of a float64 register tile."""
DEPTH = 128
"""Length of one chain of fused multiply-adds; partial sums of longer products are added in order."""


@primitive
def multiply_tile(typingctx: Any, depth: Any, a: Any, a0: Any, b: Any, b0: Any, tile: Any) -> Any:
    """tile[i·NR + j] = Σ_p a[a0 + p·MR + i] · b[b0 + p·NR + j], i < MR, j < NR, p < depth, in the order of p."""
    dtype = tile.dtype
    signature = types.void(types.intp, a, types.intp, b, types.intp, tile)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
        item = 4 if dtype == types.float32 else 8
        lanes = _BYTES // item
        vector = ir.VectorType(scalar, lanes)
        index = ir.IntType(64)

        def pointer(position: int) -> Any:
            return context.make_array(sig.args[position])(context, builder, args[position]).data

        a_start = builder.gep(pointer(1), [args[2]])
        b_start = builder.gep(pointer(3), [args[4]])
        out = pointer(5)
        zero = ir.Constant(vector, [0.0] * lanes)
        shuffle = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        suffix = f"v{lanes}f{8 * item}"
        multiply_add = builder.module.declare_intrinsic(
            f"llvm.fma.{suffix}", fnty=ir.FunctionType(vector, [vector, vector, vector])
        )

        entry = builder.block
        head = builder.append_basic_block("tile.head")
        body = builder.append_basic_block("tile.body")
        done = builder.append_basic_block("tile.done")
        builder.branch(head)
        builder.position_at_end(head)
        step = builder.phi(index)
        step.add_incoming(ir.Constant(index, 0), entry)
        sums = []
        for _ in range(MR * _VECTORS):
            phi = builder.phi(vector)
            phi.add_incoming(zero, entry)
            sums.append(phi)
        builder.cbranch(builder.icmp_signed("<", step, args[0]), body, done)

        builder.position_at_end(body)
        a_row = builder.gep(a_start, [builder.mul(step, ir.Constant(index, MR))])
        b_row = builder.gep(b_start, [builder.mul(step, ir.Constant(index, _VECTORS * lanes))])
        columns = []
        for v in range(_VECTORS):
            place = builder.gep(b_row, [ir.Constant(index, v * lanes)])
            load = builder.load(builder.bitcast(place, vector.as_pointer()))
            load.align = item
            columns.append(load)
        updated = []
        for i in range(MR):
            value = builder.load(builder.gep(a_row, [ir.Constant(index, i)]))
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            spread = builder.shuffle_vector(first, undefined, shuffle)
            for v in range(_VECTORS):
                old = sums[i * _VECTORS + v]
                if _FUSED:
                    updated.append(builder.call(multiply_add, [spread, columns[v], old]))
                else:
                    updated.append(builder.fadd(builder.fmul(spread, columns[v]), old))
        following = builder.add(step, ir.Constant(index, 1))
        step.add_incoming(following, body)
        for phi, value in zip(sums, updated, strict=True):
            phi.add_incoming(value, body)
        builder.branch(head)

        builder.position_at_end(done)
        for position, total in enumerate(sums):
            place = builder.gep(out, [ir.Constant(index, position * lanes)])
            store = builder.store(total, builder.bitcast(place, vector.as_pointer()))
            store.align = item
        return context.get_dummy_value()

    return signature, codegen


LANES = 16
"""Interleaved partial sums of :func:`lane_sum`, on every machine."""


@primitive
def lane_sum(typingctx: Any, x: Any) -> Any:
    """Sum of the first ⌊size / 16⌋ · 16 values of a contiguous array: 16 interleaved lanes, then lanes by halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        scalar = context.get_value_type(signature.args[0].dtype)
        vector = ir.VectorType(scalar, LANES)
        index = ir.IntType(64)
        rounds = builder.udiv(array.nitems, ir.Constant(index, LANES))

        entry = builder.block
        head = builder.append_basic_block("sum.head")
        body = builder.append_basic_block("sum.body")
        done = builder.append_basic_block("sum.done")
        builder.branch(head)
        builder.position_at_end(head)
        step, total = builder.phi(index), builder.phi(vector)
        step.add_incoming(ir.Constant(index, 0), entry)
        total.add_incoming(ir.Constant(vector, [0.0] * LANES), entry)
        builder.cbranch(builder.icmp_unsigned("<", step, rounds), body, done)
        builder.position_at_end(body)
        place = builder.gep(array.data, [builder.mul(step, ir.Constant(index, LANES))])
        load = builder.load(builder.bitcast(place, vector.as_pointer()))
        load.align = signature.args[0].dtype.bitwidth // 8
        total.add_incoming(builder.fadd(total, load), body)
        step.add_incoming(builder.add(step, ir.Constant(index, 1)), body)
        builder.branch(head)
        builder.position_at_end(done)
        values = total
        half = LANES // 2
        while half:
            picked = ir.VectorType(ir.IntType(32), half)
            low = builder.shuffle_vector(values, values, ir.Constant(picked, list(range(half))))
            high = builder.shuffle_vector(values, values, ir.Constant(picked, list(range(half, 2 * half))))
            values = builder.fadd(low, high)
            half //= 2
        return builder.extract_element(values, ir.Constant(ir.IntType(32), 0))

    return x.dtype(x), codegen


THRESHOLDS = 4
"""Thresholds that :func:`upper_sums` takes at a time."""


@primitive
def upper_sums(typingctx: Any, x: Any, rounds: Any, threshold: Any, count: Any, total: Any, t: Any) -> Any:
    """count[t + i] += #{x ≥ threshold[t + i]} and total[t + i] += Σ of those, i < 4, over the first 16 · rounds values.

    16 lanes of x's precision; they are added up in float64.
    """
    signature = types.void(x, types.intp, threshold, count, total, types.intp)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.get_value_type(sig.args[0].dtype)
        item = sig.args[0].dtype.bitwidth // 8
        vector, wide = ir.VectorType(scalar, LANES), ir.VectorType(ir.DoubleType(), LANES)
        index, lane = ir.IntType(64), ir.IntType(32)
        half = ir.IntType(16)

        def pointer(position: int) -> Any:
            return context.make_array(sig.args[position])(context, builder, args[position]).data

        values, thresholds, counts, totals = pointer(0), pointer(2), pointer(3), pointer(4)
        undefined = ir.Constant(vector, ir.Undefined)
        spread = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        zero = ir.Constant(vector, [0.0] * LANES)
        ones = builder.module.declare_intrinsic("llvm.ctpop.i16", fnty=ir.FunctionType(half, [half]))
        places = [builder.add(args[5], ir.Constant(index, i)) for i in range(THRESHOLDS)]
        limits = []
        for place in places:
            limit = builder.load(builder.gep(thresholds, [place]))
            limits.append(
                builder.shuffle_vector(
                    builder.insert_element(undefined, limit, ir.Constant(lane, 0)), undefined, spread
                )
            )

        entry = builder.block
        head = builder.append_basic_block("upper.head")
        body = builder.append_basic_block("upper.body")
        done = builder.append_basic_block("upper.done")
        builder.branch(head)
        builder.position_at_end(head)
        step = builder.phi(index)
        step.add_incoming(ir.Constant(index, 0), entry)
        sums, numbers = [], []
        for _ in places:
            phi = builder.phi(vector)
            phi.add_incoming(zero, entry)
            sums.append(phi)
            phi = builder.phi(index)
            phi.add_incoming(ir.Constant(index, 0), entry)
            numbers.append(phi)
        builder.cbranch(builder.icmp_signed("<", step, args[1]), body, done)

        builder.position_at_end(body)
        place = builder.gep(values, [builder.mul(step, ir.Constant(index, LANES))])
        load = builder.load(builder.bitcast(place, vector.as_pointer()))
        load.align = item
        for i, limit in enumerate(limits):
            above = builder.fcmp_ordered(">=", load, limit)
            sums[i].add_incoming(builder.fadd(sums[i], builder.select(above, load, zero)), body)
            found = builder.zext(builder.call(ones, [builder.bitcast(above, half)]), index)
            numbers[i].add_incoming(builder.add(numbers[i], found), body)
        step.add_incoming(builder.add(step, ir.Constant(index, 1)), body)
        builder.branch(head)

        builder.position_at_end(done)
        for i, place in enumerate(places):
            count_at, total_at = builder.gep(counts, [place]), builder.gep(totals, [place])
            builder.store(builder.add(builder.load(count_at), numbers[i]), count_at)
            held = builder.fpext(sums[i], wide) if item == 4 else sums[i]
            width = LANES // 2
            while width:
                picked = ir.VectorType(lane, width)
                low = builder.shuffle_vector(held, held, ir.Constant(picked, list(range(width))))
                high = builder.shuffle_vector(held, held, ir.Constant(picked, list(range(width, 2 * width))))
                held = builder.fadd(low, high)
                width //= 2
            value = builder.extract_element(held, ir.Constant(lane, 0))
            builder.store(builder.fadd(builder.load(total_at), value), total_at)
        return context.get_dummy_value()

    return signature, codegen

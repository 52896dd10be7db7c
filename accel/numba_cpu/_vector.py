"""The two hand-vectorised kernels of this backend: a register tile of a matrix product, and a sum.

Everything that is a matrix product here (the lazy update of GPTQ, Cholesky factors, second moments) goes through
:func:`multiply_tile`, which keeps an (MR, NR) tile of the result in vector registers and runs along the common axis
with fused multiply-adds in index order. So every element of a product is one fixed chain of roundings: the result does
not depend on the number of threads, on the blocking, or on the vector width of the machine.

The vector width follows the CPU that Numba compiles for; compiled code is cached per CPU by Numba itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config

from lowbit.accel.numba_cpu._jit import primitive

__all__ = [
    "DEPTH",
    "LANES",
    "MR",
    "NR32",
    "NR64",
    "SOFT_LANES",
    "THRESHOLDS",
    "Lanes",
    "Loop",
    "exp_lanes",
    "extremes",
    "gap_squares",
    "lane_sum",
    "multiply_tile",
    "power_sums",
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


SOFT_LANES = 64
"""Interleaved lanes of the sums over a row of logits, on every machine: enough chains of additions to hide their
latency. Scratch rows are padded with zeros to a multiple."""


class Loop:
    """for index in range(0, end, step), with values carried through: a block to build in, left by :meth:`close`."""

    def __init__(self, builder: Any, end: Any, step: Any, name: str, start: Sequence[Any] = ()) -> None:
        self.builder, self.step = builder, step
        entry = builder.block
        self.head, body, self.done = (builder.append_basic_block(f"{name}.{part}") for part in ("head", "body", "done"))
        builder.branch(self.head)
        builder.position_at_end(self.head)
        first = (ir.Constant(ir.IntType(64), 0), *start)
        self._phis = [builder.phi(value.type) for value in first]
        for phi, value in zip(self._phis, first, strict=True):
            phi.add_incoming(value, entry)
        self.index, *self.carried = self._phis
        builder.cbranch(builder.icmp_signed("<", self.index, end), body, self.done)
        builder.position_at_end(body)

    def close(self, *updated: Any) -> None:
        following = (self.builder.add(self.index, self.step), *updated)
        for phi, value in zip(self._phis, following, strict=True):
            phi.add_incoming(value, self.builder.block)
        self.builder.branch(self.head)
        self.builder.position_at_end(self.done)


class Lanes:
    """Vectors of a few lanes: constants, places, loops over a row and sums."""

    def __init__(self, context: Any, builder: Any, dtype: Any, lanes: int = SOFT_LANES) -> None:
        self.builder, self.lanes = builder, lanes
        self.scalar = context.get_value_type(dtype)
        self.vector = ir.VectorType(self.scalar, lanes)
        self.index, self.lane = ir.IntType(64), ir.IntType(32)
        self.whole = ir.VectorType(self.lane, lanes)
        self.item = dtype.bitwidth // 8
        self.suffix = f"v{lanes}f{8 * self.item}"

    def constant(self, value: float) -> Any:
        return ir.Constant(self.vector, [value] * self.lanes)

    def spread(self, value: Any, kind: Any = None) -> Any:
        undefined = ir.Constant(kind or self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, self.lane(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(self.whole, [0] * self.lanes))

    def _at(self, data: Any, place: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [place]), self.vector.as_pointer())

    def load(self, data: Any, place: Any) -> Any:
        value = self.builder.load(self._at(data, place))
        value.align = self.item
        return value

    def store(self, value: Any, data: Any, place: Any) -> None:
        self.builder.store(value, self._at(data, place)).align = self.item

    def rest(self, data: Any, size: Any) -> tuple[Any, Any, Any]:
        """(values, mask, place) of what follows the last full block, which may be nothing; zeros elsewhere."""
        builder = self.builder
        place = builder.and_(size, self.index(-self.lanes))
        count = builder.trunc(builder.sub(size, place), self.lane)
        numbers = ir.Constant(self.whole, list(range(self.lanes)))
        mask = builder.icmp_signed("<", numbers, self.spread(count, self.whole))
        kind = ir.FunctionType(self.vector, [self.vector.as_pointer(), self.lane, mask.type, self.vector])
        name = f"llvm.masked.load.{self.suffix}.p0"
        take = builder.module.declare_intrinsic(name, fnty=kind)
        aligned = self.lane(self.item)
        return builder.call(take, [self._at(data, place), aligned, mask, self.constant(0.0)]), mask, place

    def prefetch(self, data: Any, place: Any) -> None:
        """Ask for the cache lines of one block; the address need not be valid."""
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = self.builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        for line in range(0, self.lanes * self.item, 64):
            at = self.builder.gep(data, [self.builder.add(place, self.index(line // self.item))])
            self.builder.call(ask, [self.builder.bitcast(at, byte), number(0), number(3), number(1)])

    def loop(self, size: Any, start: list[Any], body: Any) -> list[Any]:
        """Carry vectors through ``body(place, carried) -> carried`` over all full blocks of an array."""
        rounds = self.builder.udiv(size, self.index(self.lanes))
        loop = Loop(self.builder, rounds, self.index(1), "lanes", start)
        loop.close(*body(self.builder.mul(loop.index, self.index(self.lanes)), loop.carried))
        return loop.carried

    def folded(self, values: Any, join: Any) -> Any:
        """Lanes by halves."""
        half = self.lanes // 2
        while half:
            picked = ir.VectorType(self.lane, half)
            low = self.builder.shuffle_vector(values, values, ir.Constant(picked, list(range(half))))
            high = self.builder.shuffle_vector(values, values, ir.Constant(picked, list(range(half, 2 * half))))
            values = join(low, high)
            half //= 2
        return self.builder.extract_element(values, self.lane(0))

    def larger(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        if not _FUSED:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(self.builder.module.declare_intrinsic(f"llvm.fma.{self.suffix}", fnty=kind), [a, b, c])


@primitive
def multiply_tile(typingctx: Any, depth: Any, a: Any, a0: Any, b: Any, b0: Any, tile: Any) -> Any:
    """tile[i·NR + j] = Σ_p a[a0 + p·MR + i] · b[b0 + p·NR + j], i < MR, j < NR, p < depth, in the order of p."""
    signature = types.void(types.intp, a, types.intp, b, types.intp, tile)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = Lanes(context, builder, tile.dtype, _BYTES * 8 // tile.dtype.bitwidth)

        def pointer(position: int) -> Any:
            return context.make_array(sig.args[position])(context, builder, args[position]).data

        a_start = builder.gep(pointer(1), [args[2]])
        b_start = builder.gep(pointer(3), [args[4]])
        out = pointer(5)
        loop = Loop(builder, args[0], v.index(1), "tile", [v.constant(0.0)] * (MR * _VECTORS))
        a_row = builder.gep(a_start, [builder.mul(loop.index, v.index(MR))])
        b_row = builder.gep(b_start, [builder.mul(loop.index, v.index(_VECTORS * v.lanes))])
        columns = [v.load(b_row, v.index(n * v.lanes)) for n in range(_VECTORS)]
        updated = []
        for i in range(MR):
            spread = v.spread(builder.load(builder.gep(a_row, [v.index(i)])))
            for n in range(_VECTORS):
                updated.append(v.multiply_add(spread, columns[n], loop.carried[i * _VECTORS + n]))
        loop.close(*updated)
        for position, total in enumerate(loop.carried):
            v.store(total, out, v.index(position * v.lanes))
        return context.get_dummy_value()

    return signature, codegen


LANES = 16
"""Interleaved partial sums of :func:`lane_sum`, on every machine."""


@primitive
def lane_sum(typingctx: Any, x: Any) -> Any:
    """Sum of the first ⌊size / 16⌋ · 16 values of a contiguous array: 16 interleaved lanes, then lanes by halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        v = Lanes(context, builder, signature.args[0].dtype, LANES)

        def body(place: Any, carried: list[Any]) -> list[Any]:
            return [builder.fadd(carried[0], v.load(array.data, place))]

        return v.folded(v.loop(array.nitems, [v.constant(0.0)], body)[0], builder.fadd)

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
        v = Lanes(context, builder, sig.args[0].dtype, LANES)
        wide, half = ir.VectorType(ir.DoubleType(), LANES), ir.IntType(16)

        def pointer(position: int) -> Any:
            return context.make_array(sig.args[position])(context, builder, args[position]).data

        values, thresholds, counts, totals = pointer(0), pointer(2), pointer(3), pointer(4)
        zero = v.constant(0.0)
        ones = builder.module.declare_intrinsic("llvm.ctpop.i16", fnty=ir.FunctionType(half, [half]))
        places = [builder.add(args[5], v.index(i)) for i in range(THRESHOLDS)]
        limits = [v.spread(builder.load(builder.gep(thresholds, [place]))) for place in places]
        loop = Loop(builder, args[1], v.index(1), "upper", [zero] * THRESHOLDS + [v.index(0)] * THRESHOLDS)
        sums, numbers = loop.carried[:THRESHOLDS], loop.carried[THRESHOLDS:]
        load = v.load(values, builder.mul(loop.index, v.index(LANES)))
        above = [builder.fcmp_ordered(">=", load, limit) for limit in limits]
        found = [builder.zext(builder.call(ones, [builder.bitcast(bits, half)]), v.index) for bits in above]
        loop.close(
            *(builder.fadd(total, builder.select(bits, load, zero)) for total, bits in zip(sums, above, strict=True)),
            *(builder.add(number, more) for number, more in zip(numbers, found, strict=True)),
        )
        for place, total, number in zip(places, sums, numbers, strict=True):
            count_at, total_at = builder.gep(counts, [place]), builder.gep(totals, [place])
            builder.store(builder.add(builder.load(count_at), number), count_at)
            value = v.folded(builder.fpext(total, wide) if v.item == 4 else total, builder.fadd)
            builder.store(builder.fadd(builder.load(total_at), value), total_at)
        return context.get_dummy_value()

    return signature, codegen


# 2^f on [-1/2, 1/2] as 1 + f·q(f), coefficients of q from the highest power: the best relative error, 9.2e-8 or 1.6u
_EXP2 = (
    0.001326472731307149,
    0.009671512991189957,
    0.05550733581185341,
    0.24022242426872253,
    0.6931470036506653,
)
_MAGIC = 12582912.0  # 1.5 · 2^23: adding it leaves the nearest integer in the low bits
_FLUSH = -86.0  # e^x is never below 4.5e-38: the exponent of the result is always that of a normal number


_EXP_LANES = 32  # values whose exponentials are computed side by side: all that 16 registers hold


@primitive
def extremes(typingctx: Any, x: Any) -> Any:
    """(max x[i], min x[i]) over all values, NaN left out; −∞ and ∞ of none."""
    pair = types.UniTuple(x.dtype, 2)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = context.make_array(sig.args[0])(context, builder, args[0])
        v = Lanes(context, builder, sig.args[0].dtype)

        def body(place: Any, carried: list[Any]) -> list[Any]:
            value = v.load(array.data, place)
            return [v.larger(value, carried[0]), v.smaller(value, carried[1])]

        top, least = v.loop(array.nitems, [v.constant(float("-inf")), v.constant(float("inf"))], body)
        value, mask, _ = v.rest(array.data, array.nitems)
        top = builder.select(mask, v.larger(value, top), top)
        least = builder.select(mask, v.smaller(value, least), least)
        return context.make_tuple(builder, sig.return_type, [v.folded(top, v.larger), v.folded(least, v.smaller)])

    return pair(x), codegen


@primitive
def exp_lanes(typingctx: Any, x: Any, top: Any, out: Any) -> Any:
    """out[i] = e^(x[i] − top) for all values, which are at most top, then zeros up to a multiple of 32; NaN stays NaN.

    float32: 2^n (1 + f q(f)) with n + f = (x − top) log₂ e, four u for small arguments and a relative error of
    2u abs(x − top) beside it; never below e^−86, so that every exponent is that of a normal number.
    float64: the C library's. While a row computes, as many values behind it, the next row, are fetched.
    """
    signature = types.void(x, x.dtype, out)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given = context.make_array(sig.args[0])(context, builder, args[0])
        target = context.make_array(sig.args[2])(context, builder, args[2])
        v = Lanes(context, builder, sig.args[0].dtype, _EXP_LANES)
        highest = v.spread(args[1])

        def exponential(below: Any) -> Any:
            if v.item == 8:
                kind = ir.FunctionType(v.vector, [v.vector])
                return builder.call(builder.module.declare_intrinsic(f"llvm.exp.{v.suffix}", fnty=kind), [below])
            floor = v.constant(_FLUSH)
            kept = builder.select(builder.fcmp_ordered("<", below, floor), floor, below)
            scale = v.constant(1.4426950408889634)
            shifted = v.multiply_add(kept, scale, v.constant(_MAGIC))
            part = v.multiply_add(kept, scale, builder.fsub(v.constant(_MAGIC), shifted))
            q = v.constant(_EXP2[0])
            for c in _EXP2[1:]:
                q = v.multiply_add(q, part, v.constant(c))
            mantissa = v.multiply_add(q, part, v.constant(1.0))
            exponent = builder.shl(builder.bitcast(shifted, v.whole), ir.Constant(v.whole, [23] * v.lanes))
            return builder.bitcast(builder.add(builder.bitcast(mantissa, v.whole), exponent), v.vector)

        def body(place: Any, carried: list[Any]) -> list[Any]:
            v.prefetch(given.data, builder.add(place, given.nitems))
            v.store(exponential(builder.fsub(v.load(given.data, place), highest)), target.data, place)
            return []

        v.loop(given.nitems, [], body)
        value, mask, place = v.rest(given.data, given.nitems)
        kept = builder.select(mask, exponential(builder.fsub(value, highest)), v.constant(0.0))
        with builder.if_then(builder.icmp_unsigned("<", place, given.nitems)):
            v.store(kept, target.data, place)
        return context.get_dummy_value()

    return signature, codegen


@primitive
def power_sums(typingctx: Any, x: Any) -> Any:
    """(Σ x[i], Σ x[i]²) over the first ⌊size / 64⌋ · 64 values."""
    pair = types.UniTuple(x.dtype, 2)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = context.make_array(sig.args[0])(context, builder, args[0])
        v = Lanes(context, builder, sig.args[0].dtype)

        def body(place: Any, carried: list[Any]) -> list[Any]:
            value = v.load(array.data, place)
            return [builder.fadd(carried[0], value), v.multiply_add(value, value, carried[1])]

        sums = v.loop(array.nitems, [v.constant(0.0)] * 2, body)
        return context.make_tuple(builder, sig.return_type, [v.folded(total, builder.fadd) for total in sums])

    return pair(x), codegen


@primitive
def gap_squares(typingctx: Any, x: Any, y: Any, a: Any) -> Any:
    """Σ (x[i] − a y[i])² over the first ⌊size / 64⌋ · 64 values: equal rows and a = 1 give exactly 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        left, right = (context.make_array(sig.args[i])(context, builder, args[i]) for i in (0, 1))
        v = Lanes(context, builder, sig.args[0].dtype)
        factor = v.spread(builder.fneg(args[2]))

        def body(place: Any, carried: list[Any]) -> list[Any]:
            gap = v.multiply_add(v.load(right.data, place), factor, v.load(left.data, place))
            return [v.multiply_add(gap, gap, carried[0])]

        return v.folded(v.loop(left.nitems, [v.constant(0.0)], body)[0], builder.fadd)

    return x.dtype(x, y, x.dtype), codegen

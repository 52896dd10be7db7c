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
    "SOFT_LANES",
    "THRESHOLDS",
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


SOFT_LANES = 64
"""Interleaved lanes of the sums over a row of logits, on every machine: enough chains of additions to hide their
latency. Scratch rows are padded with zeros to a multiple."""
_EXP_LANES = 32  # values whose exponentials are computed side by side: all that 16 registers hold


class _Lanes:
    """What the passes over a row share: constants, places, loops and sums of vectors."""

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
        first = self.builder.insert_element(undefined, value, ir.Constant(self.lane, 0))
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
        place = builder.and_(size, ir.Constant(self.index, -self.lanes))
        count = builder.trunc(builder.sub(size, place), self.lane)
        numbers = ir.Constant(self.whole, list(range(self.lanes)))
        mask = builder.icmp_signed("<", numbers, self.spread(count, self.whole))
        kind = ir.FunctionType(self.vector, [self.vector.as_pointer(), self.lane, mask.type, self.vector])
        name = f"llvm.masked.load.{self.suffix}.p0"
        take = builder.module.declare_intrinsic(name, fnty=kind)
        aligned = ir.Constant(self.lane, self.item)
        return builder.call(take, [self._at(data, place), aligned, mask, self.constant(0.0)]), mask, place

    def prefetch(self, data: Any, place: Any) -> None:
        """Ask for the cache lines of one block; the address need not be valid."""
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = self.builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        for line in range(0, self.lanes * self.item, 64):
            at = self.builder.gep(data, [self.builder.add(place, ir.Constant(self.index, line // self.item))])
            self.builder.call(ask, [self.builder.bitcast(at, byte), number(0), number(3), number(1)])

    def loop(self, size: Any, start: list[Any], body: Any) -> list[Any]:
        """Carry vectors through ``body(place, carried) -> carried`` over all full blocks of an array."""
        builder = self.builder
        rounds = builder.udiv(size, ir.Constant(self.index, self.lanes))
        entry = builder.block
        blocks = [builder.append_basic_block(f"lanes.{part}") for part in ("head", "body", "done")]
        builder.branch(blocks[0])
        builder.position_at_end(blocks[0])
        step = builder.phi(self.index)
        step.add_incoming(ir.Constant(self.index, 0), entry)
        carried = []
        for value in start:
            phi = builder.phi(self.vector)
            phi.add_incoming(value, entry)
            carried.append(phi)
        builder.cbranch(builder.icmp_unsigned("<", step, rounds), blocks[1], blocks[2])
        builder.position_at_end(blocks[1])
        updated = body(builder.mul(step, ir.Constant(self.index, self.lanes)), carried)
        for phi, value in zip(carried, updated, strict=True):
            phi.add_incoming(value, blocks[1])
        step.add_incoming(builder.add(step, ir.Constant(self.index, 1)), blocks[1])
        builder.branch(blocks[0])
        builder.position_at_end(blocks[2])
        return carried

    def folded(self, values: Any, join: Any) -> Any:
        """Lanes by halves."""
        half = self.lanes // 2
        while half:
            picked = ir.VectorType(self.lane, half)
            low = self.builder.shuffle_vector(values, values, ir.Constant(picked, list(range(half))))
            high = self.builder.shuffle_vector(values, values, ir.Constant(picked, list(range(half, 2 * half))))
            values = join(low, high)
            half //= 2
        return self.builder.extract_element(values, ir.Constant(self.lane, 0))

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
def extremes(typingctx: Any, x: Any) -> Any:
    """(max x[i], min x[i]) over all values, NaN left out; −∞ and ∞ of none."""
    pair = types.UniTuple(x.dtype, 2)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = context.make_array(sig.args[0])(context, builder, args[0])
        v = _Lanes(context, builder, sig.args[0].dtype)

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
        v = _Lanes(context, builder, sig.args[0].dtype, _EXP_LANES)
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
        v = _Lanes(context, builder, sig.args[0].dtype)

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
        v = _Lanes(context, builder, sig.args[0].dtype)
        factor = v.spread(builder.fneg(args[2]))

        def body(place: Any, carried: list[Any]) -> list[Any]:
            gap = v.multiply_add(v.load(right.data, place), factor, v.load(left.data, place))
            return [v.multiply_add(gap, gap, carried[0])]

        return v.folded(v.loop(left.nitems, [v.constant(0.0)], body)[0], builder.fadd)

    return x.dtype(x, y, x.dtype), codegen

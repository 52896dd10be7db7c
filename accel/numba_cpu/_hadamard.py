"""Hand-vectorised pieces of the Hadamard transform: butterflies in registers, and tiles of a product with a table.

A row of 2^t entries is read once for as many rounds as fit the registers: first the rounds inside a vector register
(a shuffle and a signed addition each) and among the vectors next to each other, then, at larger distances, up to four
rounds per pass over a row that stays in the first-level cache.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from lowbit.accel.numba_cpu._jit import primitive
from lowbit.accel.numba_cpu._vector import Lanes, Loop, vector_bytes

__all__ = ["BYTES", "COLUMNS", "FAR", "NEAR", "combinations", "picked_sums", "table_tile"]

BYTES = vector_bytes()
"""Size of a vector register."""
_MOST = 4 if BYTES == 64 else 3  # rounds among 16 (or 8) vectors: half of the registers there are
COLUMNS = 4 if BYTES == 64 else 2
"""Vectors of a row that :func:`table_tile` works on at once."""
_OUTPUTS = 4  # every order of a table is a multiple of 4

_I64 = ir.IntType(64)


def _pointer(context: Any, builder: Any, signature: Any, args: Any, position: int) -> Any:
    return context.make_array(signature.args[position])(context, builder, args[position]).data


def _butterflies(builder: Any, values: list[Any]) -> list[Any]:
    """Rounds among a power of two of vectors."""
    distance = 1
    while distance < len(values):
        for i in range(len(values)):
            if not i & distance:
                a, b = values[i], values[i + distance]
                values[i], values[i + distance] = builder.fadd(a, b), builder.fsub(a, b)
        distance *= 2
    return values


def _vectors(context: Any, builder: Any, dtype: Any) -> Lanes:
    """Whole registers."""
    return Lanes(context, builder, dtype, BYTES * 8 // dtype.bitwidth)


def _within(v: Lanes, value: Any) -> Any:
    """Rounds inside one vector: (a, b) → (a + b, a − b) at distances 1, 2, … lanes/2."""
    distance = 1
    while distance < v.lanes:
        swapped = v.builder.shuffle_vector(value, value, v.whole([i ^ distance for i in range(v.lanes)]))
        signs = v.vector([-1.0 if i & distance else 1.0 for i in range(v.lanes)])
        value = v.builder.fadd(swapped, v.builder.fmul(value, signs))  # the product is exact
        distance *= 2
    return value


def _near(rounds: int) -> Any:
    """The first pass: all rounds inside a vector, and ``rounds`` among neighbouring vectors."""

    @primitive
    def near(typingctx: Any, x: Any, x0: Any, y: Any, y0: Any, length: Any, scale: Any) -> Any:
        """y[y0 + i] ← scale · (I ⊗ H) x[x0 + i], i < length, in blocks of 2^rounds vectors."""
        signature = types.void(x, types.intp, y, types.intp, types.intp, y.dtype)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            v = _vectors(context, builder, y.dtype)
            source = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
            target = builder.gep(_pointer(context, builder, sig, args, 2), [args[3]])
            spread = v.spread(args[5])
            count = 1 << rounds
            loop = Loop(builder, args[4], _I64(count * v.lanes), "near")
            places = [builder.add(loop.index, _I64(i * v.lanes)) for i in range(count)]
            values = [builder.fmul(v.load(source, p), spread) for p in places]
            values = _butterflies(builder, [_within(v, value) for value in values])
            for place, value in zip(places, values, strict=True):
                v.store(value, target, place)
            loop.close()
            return context.get_dummy_value()

        return signature, codegen

    return near


def _far(rounds: int) -> Any:
    """A later pass: ``rounds`` rounds at distances stride, 2 stride, …, in place."""

    @primitive
    def far(typingctx: Any, y: Any, y0: Any, length: Any, stride: Any) -> Any:
        """y[y0 + i], i < length, in blocks of 2^rounds · stride; stride is a multiple of the vector."""
        signature = types.void(y, types.intp, types.intp, types.intp)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            v = _vectors(context, builder, y.dtype)
            row = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
            count = 1 << rounds
            block = Loop(builder, args[2], builder.mul(args[3], _I64(count)), "far.block")
            column = Loop(builder, args[3], _I64(v.lanes), "far.column")
            start = builder.add(block.index, column.index)
            places = [builder.add(start, builder.mul(args[3], _I64(i))) for i in range(count)]
            values = _butterflies(builder, [v.load(row, p) for p in places])
            for place, value in zip(places, values, strict=True):
                v.store(value, row, place)
            column.close()
            block.close()
            return context.get_dummy_value()

        return signature, codegen

    return far


NEAR = tuple(_near(rounds) for rounds in range(_MOST + 1))
"""First passes with 0, 1, … rounds among neighbouring vectors."""
FAR = tuple(_far(rounds) for rounds in range(1, _MOST + 1))
"""Later passes of 1, 2, … rounds."""


@primitive
def combinations(typingctx: Any, x: Any, x0: Any, stride: Any, out: Any, out0: Any) -> Any:
    """All sums ±v0 ± v1 ± v2 ± v3 of four vectors, v_j at x[x0 + j·stride]; bit j of the place is set for −v_j.

    A row of signs is four of its entries at a time one of these sixteen: a quarter of the additions, as in products of
    binary codes by look-up tables.
    """
    signature = types.void(x, types.intp, types.intp, out, types.intp)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = _vectors(context, builder, out.dtype)
        source = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
        target = builder.gep(_pointer(context, builder, sig, args, 3), [args[4]])
        places = [builder.mul(args[2], _I64(j)) for j in range(4)]
        a, b, c, d = (v.load(source, place) for place in places)
        pairs = []
        for first, second in ((a, b), (c, d)):
            total, difference = builder.fadd(first, second), builder.fsub(first, second)
            pairs.append((total, builder.fneg(difference), difference, builder.fneg(total)))
        for index in range(16):
            value = builder.fadd(pairs[0][index & 3], pairs[1][index >> 2])
            v.store(value, target, _I64(index * v.lanes))
        return context.get_dummy_value()

    return signature, codegen


@primitive
def picked_sums(
    typingctx: Any, sums: Any, half: Any, index: Any, first: Any, count: Any, y: Any, y0: Any, stride: Any, places: Any,
    place: Any,
) -> Any:  # fmt: skip
    """Four rows of a table times two vectors, by their combinations.

    y[y0 + i·stride + p_v] ← Σ_q sums[v·half + index[first + i·count + q]], i < 4, v < 2, p_v the places from ``place``.
    """
    signature = types.void(
        sums, types.intp, index, types.intp, types.intp, y, types.intp, types.intp, places, types.intp
    )  # fmt: skip

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = _vectors(context, builder, y.dtype)
        table = _pointer(context, builder, sig, args, 0)
        picks = builder.gep(_pointer(context, builder, sig, args, 2), [args[3]])
        target = builder.gep(_pointer(context, builder, sig, args, 5), [args[6]])
        listed = builder.gep(_pointer(context, builder, sig, args, 8), [args[9]])
        other = builder.gep(table, [args[1]])
        loop = Loop(builder, args[4], _I64(1), "picked", [v.constant(0.0)] * (2 * _OUTPUTS))
        updated = []
        for i in range(_OUTPUTS):
            row = builder.add(builder.mul(args[4], _I64(i)), loop.index)
            pick = builder.load(builder.gep(picks, [row]))
            for n, base in enumerate((table, other)):
                updated.append(builder.fadd(loop.carried[2 * i + n], v.load(base, pick)))
        loop.close(*updated)
        columns = [builder.load(builder.gep(listed, [_I64(n)])) for n in range(2)]
        for position, total in enumerate(loop.carried):
            base = builder.mul(args[7], _I64(position // 2))
            v.store(total, target, builder.add(base, columns[position % 2]))
        return context.get_dummy_value()

    return signature, codegen


@primitive
def table_tile(
    typingctx: Any, table: Any, first: Any, order: Any, x: Any, stride: Any, places: Any, place: Any, y: Any, y0: Any
) -> Any:
    """Four rows of a table times :data:`COLUMNS` vectors.

    y[y0 + i·stride + p] ← Σ_k table[first + i + k·order] · x[k·stride + p], i < 4, p the places from ``place`` on.
    """
    signature = types.void(
        table, types.intp, types.intp, x, types.intp, places, types.intp, y, types.intp
    )  # fmt: skip

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = _vectors(context, builder, y.dtype)
        signs = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
        source = _pointer(context, builder, sig, args, 3)
        target = builder.gep(_pointer(context, builder, sig, args, 7), [args[8]])
        listed = builder.gep(_pointer(context, builder, sig, args, 5), [args[6]])
        columns = [builder.load(builder.gep(listed, [_I64(n)])) for n in range(COLUMNS)]
        multiply_add = builder.module.declare_intrinsic(
            f"llvm.fmuladd.{v.suffix}", fnty=ir.FunctionType(v.vector, [v.vector] * 3)
        )
        loop = Loop(builder, args[2], _I64(1), "table", [v.constant(0.0)] * (_OUTPUTS * COLUMNS))
        row = builder.mul(loop.index, args[4])
        values = [v.load(source, builder.add(row, p)) for p in columns]
        sign = builder.mul(loop.index, args[2])
        updated = []
        for i in range(_OUTPUTS):
            spread = v.spread(builder.load(builder.gep(signs, [builder.add(sign, _I64(i))])))
            for n in range(COLUMNS):
                updated.append(builder.call(multiply_add, [spread, values[n], loop.carried[i * COLUMNS + n]]))
        loop.close(*updated)
        for position, total in enumerate(loop.carried):
            base = builder.mul(args[4], _I64(position // COLUMNS))
            v.store(total, target, builder.add(base, columns[position % COLUMNS]))
        return context.get_dummy_value()

    return signature, codegen

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
from lowbit.accel.numba_cpu._vector import _BYTES

__all__ = ["BYTES", "COLUMNS", "FAR", "NEAR", "combinations", "picked_sums", "table_tile"]

BYTES = _BYTES
"""Size of a vector register."""
_MOST = 4 if BYTES == 64 else 3  # rounds among 16 (or 8) vectors: half of the registers there are
COLUMNS = 4 if BYTES == 64 else 2
"""Vectors of a row that :func:`table_tile` works on at once."""
_OUTPUTS = 4  # every order of a table is a multiple of 4

_I64, _I32 = ir.IntType(64), ir.IntType(32)


def _pointer(context: Any, builder: Any, signature: Any, args: Any, position: int) -> Any:
    return context.make_array(signature.args[position])(context, builder, args[position]).data


def _vector_type(dtype: Any) -> tuple[Any, int, int]:
    """(vector, lanes, bytes of an entry)."""
    item = 4 if dtype == types.float32 else 8
    return ir.VectorType(ir.FloatType() if item == 4 else ir.DoubleType(), BYTES // item), BYTES // item, item


def _load(builder: Any, base: Any, offset: Any, vector: Any, item: int) -> Any:
    value = builder.load(builder.bitcast(builder.gep(base, [offset]), vector.as_pointer()))
    value.align = item
    return value


def _store(builder: Any, value: Any, base: Any, offset: Any, vector: Any, item: int) -> None:
    builder.store(value, builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())).align = item


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


def _within(builder: Any, value: Any, vector: Any, lanes: int) -> Any:
    """Rounds inside one vector: (a, b) → (a + b, a − b) at distances 1, 2, … lanes/2."""
    distance = 1
    while distance < lanes:
        swapped = builder.shuffle_vector(
            value, value, ir.Constant(ir.VectorType(_I32, lanes), [i ^ distance for i in range(lanes)])
        )
        signs = ir.Constant(vector, [-1.0 if i & distance else 1.0 for i in range(lanes)])
        value = builder.fadd(swapped, builder.fmul(value, signs))  # the product is exact
        distance *= 2
    return value


class _Loop:
    """for index in range(0, end, step): a block to build in, left by :meth:`close`."""

    def __init__(self, builder: Any, end: Any, step: Any, name: str) -> None:
        self.builder, self.step = builder, step
        entry = builder.block
        self.head, body, self.done = (builder.append_basic_block(f"{name}.{part}") for part in ("head", "body", "done"))
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.index = builder.phi(_I64)
        self.index.add_incoming(ir.Constant(_I64, 0), entry)
        builder.cbranch(builder.icmp_signed("<", self.index, end), body, self.done)
        builder.position_at_end(body)

    def close(self) -> None:
        following = self.builder.add(self.index, self.step)
        self.index.add_incoming(following, self.builder.block)
        self.builder.branch(self.head)
        self.builder.position_at_end(self.done)


def _near(rounds: int) -> Any:
    """The first pass: all rounds inside a vector, and ``rounds`` among neighbouring vectors."""

    @primitive
    def near(typingctx: Any, x: Any, x0: Any, y: Any, y0: Any, length: Any, scale: Any) -> Any:
        """y[y0 + i] ← scale · (I ⊗ H) x[x0 + i], i < length, in blocks of 2^rounds vectors."""
        signature = types.void(x, types.intp, y, types.intp, types.intp, y.dtype)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            vector, lanes, item = _vector_type(y.dtype)
            source = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
            target = builder.gep(_pointer(context, builder, sig, args, 2), [args[3]])
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), args[5], ir.Constant(_I32, 0))
            spread = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))
            count = 1 << rounds
            loop = _Loop(builder, args[4], ir.Constant(_I64, count * lanes), "near")
            places = [builder.add(loop.index, ir.Constant(_I64, i * lanes)) for i in range(count)]
            values = [builder.fmul(_load(builder, source, p, vector, item), spread) for p in places]
            values = _butterflies(builder, [_within(builder, v, vector, lanes) for v in values])
            for place, value in zip(places, values, strict=True):
                _store(builder, value, target, place, vector, item)
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
            vector, lanes, item = _vector_type(y.dtype)
            row = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
            count = 1 << rounds
            block = _Loop(builder, args[2], builder.mul(args[3], ir.Constant(_I64, count)), "far.block")
            column = _Loop(builder, args[3], ir.Constant(_I64, lanes), "far.column")
            start = builder.add(block.index, column.index)
            places = [builder.add(start, builder.mul(args[3], ir.Constant(_I64, i))) for i in range(count)]
            values = _butterflies(builder, [_load(builder, row, p, vector, item) for p in places])
            for place, value in zip(places, values, strict=True):
                _store(builder, value, row, place, vector, item)
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
        vector, lanes, item = _vector_type(out.dtype)
        source = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
        target = builder.gep(_pointer(context, builder, sig, args, 3), [args[4]])
        places = [builder.mul(args[2], ir.Constant(_I64, j)) for j in range(4)]
        a, b, c, d = (_load(builder, source, place, vector, item) for place in places)
        pairs = []
        for first, second in ((a, b), (c, d)):
            total, difference = builder.fadd(first, second), builder.fsub(first, second)
            pairs.append((total, builder.fneg(difference), difference, builder.fneg(total)))
        for index in range(16):
            value = builder.fadd(pairs[0][index & 3], pairs[1][index >> 2])
            _store(builder, value, target, ir.Constant(_I64, index * lanes), vector, item)
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
        vector, lanes, item = _vector_type(y.dtype)
        table = _pointer(context, builder, sig, args, 0)
        picks = builder.gep(_pointer(context, builder, sig, args, 2), [args[3]])
        target = builder.gep(_pointer(context, builder, sig, args, 5), [args[6]])
        listed = builder.gep(_pointer(context, builder, sig, args, 8), [args[9]])
        other = builder.gep(table, [args[1]])
        zero = ir.Constant(vector, [0.0] * lanes)
        entry = builder.block
        head, body, done = (builder.append_basic_block(f"picked.{part}") for part in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        q = builder.phi(_I64)
        q.add_incoming(ir.Constant(_I64, 0), entry)
        totals = []
        for _ in range(2 * _OUTPUTS):
            total = builder.phi(vector)
            total.add_incoming(zero, entry)
            totals.append(total)
        builder.cbranch(builder.icmp_signed("<", q, args[4]), body, done)
        builder.position_at_end(body)
        updated = []
        for i in range(_OUTPUTS):
            row = builder.add(builder.mul(args[4], ir.Constant(_I64, i)), q)
            pick = builder.load(builder.gep(picks, [row]))
            for v, base in enumerate((table, other)):
                updated.append(builder.fadd(totals[2 * i + v], _load(builder, base, pick, vector, item)))
        q.add_incoming(builder.add(q, ir.Constant(_I64, 1)), body)
        builder.branch(head)
        for total, value in zip(totals, updated, strict=True):
            total.add_incoming(value, body)
        builder.position_at_end(done)
        columns = [builder.load(builder.gep(listed, [ir.Constant(_I64, v)])) for v in range(2)]
        for i in range(_OUTPUTS):
            base = builder.mul(args[7], ir.Constant(_I64, i))
            for v in range(2):
                _store(builder, totals[2 * i + v], target, builder.add(base, columns[v]), vector, item)
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
        vector, lanes, item = _vector_type(y.dtype)
        signs = builder.gep(_pointer(context, builder, sig, args, 0), [args[1]])
        source = _pointer(context, builder, sig, args, 3)
        target = builder.gep(_pointer(context, builder, sig, args, 7), [args[8]])
        listed = builder.gep(_pointer(context, builder, sig, args, 5), [args[6]])
        columns = [builder.load(builder.gep(listed, [ir.Constant(_I64, v)])) for v in range(COLUMNS)]
        zero = ir.Constant(vector, [0.0] * lanes)
        same = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        multiply_add = builder.module.declare_intrinsic(
            f"llvm.fmuladd.v{lanes}f{8 * item}", fnty=ir.FunctionType(vector, [vector] * 3)
        )
        entry = builder.block
        head, body, done = (builder.append_basic_block(f"table.{part}") for part in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(_I64)
        k.add_incoming(ir.Constant(_I64, 0), entry)
        sums = []
        for _ in range(_OUTPUTS * COLUMNS):
            total = builder.phi(vector)
            total.add_incoming(zero, entry)
            sums.append(total)
        builder.cbranch(builder.icmp_signed("<", k, args[2]), body, done)
        builder.position_at_end(body)
        row = builder.mul(k, args[4])
        values = [_load(builder, source, builder.add(row, p), vector, item) for p in columns]
        sign = builder.mul(k, args[2])
        updated = []
        for i in range(_OUTPUTS):
            scalar = builder.load(builder.gep(signs, [builder.add(sign, ir.Constant(_I64, i))]))
            spread = builder.shuffle_vector(
                builder.insert_element(undefined, scalar, ir.Constant(_I32, 0)), undefined, same
            )
            for v in range(COLUMNS):
                updated.append(builder.call(multiply_add, [spread, values[v], sums[i * COLUMNS + v]]))
        k.add_incoming(builder.add(k, ir.Constant(_I64, 1)), body)
        builder.branch(head)
        for total, value in zip(sums, updated, strict=True):
            total.add_incoming(value, body)
        builder.position_at_end(done)
        for i in range(_OUTPUTS):
            base = builder.mul(args[4], ir.Constant(_I64, i))
            for v in range(COLUMNS):
                _store(builder, sums[i * COLUMNS + v], target, builder.add(base, columns[v]), vector, item)
        return context.get_dummy_value()

    return signature, codegen

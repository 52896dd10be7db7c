"""Products with 4-bit codes whose 16 levels stay in a vector register.

The codes are read as packed: a vector of LANES words holds SPAN = 8 · LANES codes, lane l those of columns 8 l … 8 l +
7 of the chunk. Shifting the vector right by 4 s brings the code of column 8 l + s to the low bits of lane l, and one
permutation of the table by it gives LANES levels at once; bits above the lowest four do not disturb it. Inputs are laid
out once per call in the same order, so that nothing is unpacked or shuffled back.

Needs a permutation by variable indices: AVX-512 (16 lanes) or AVX2 (8 lanes, two permutations and a selection).
:data:`AVAILABLE` says whether the processor that Numba compiles for has one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from lowbit.accel.numba_cpu._jit import primitive
from lowbit.accel.numba_cpu._vector import vector_bytes

__all__ = [
    "AVAILABLE",
    "BLOCKS",
    "LANES",
    "ROWS",
    "SPAN",
    "TOKENS",
    "Loop",
    "data_of",
    "dot_row_1",
    "dot_row_2",
    "dot_row_3",
    "dot_row_4",
    "expand_row",
    "load",
    "multiply_rows_1",
    "multiply_rows_2",
    "multiply_rows_3",
    "prefetch",
    "store",
]

AVAILABLE = vector_bytes() >= 32
LANES = 16 if vector_bytes() == 64 else 8
"""Words that are looked at together."""
SPAN = 8 * LANES
"""Codes of one chunk."""
ROWS = {1: 24, 2: 12, 3: 8} if LANES == 16 else {1: 10, 2: 6, 3: 4}
"""Rows of a register tile by the number of vectors that its inputs fill."""
BLOCKS = 4
"""Most blocks of one chunk; scales are read that many at a time."""

_AHEAD = 1024  # words between a load and the prefetch beside it: one page

_INT, _INDEX, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _VECTOR = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)


def data_of(context: Any, builder: Any, signature: Any, args: Any, position: int) -> Any:
    return context.make_array(signature.args[position])(context, builder, args[position]).data


def load(builder: Any, pointer: Any, kind: Any, *, align: int = 4) -> Any:
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = align
    return value


def store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 4


def prefetch(builder: Any, pointer: Any, step: Any) -> None:
    """Ask for the line ``step`` items further on: the hardware's own prefetcher stops at every page."""
    target = builder.bitcast(builder.gep(pointer, [step]), ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [target.type, _INT, _INT, _INT])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [target, ir.Constant(_INT, 0), ir.Constant(_INT, 3), ir.Constant(_INT, 1)])


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", fnty=kind), [a, b, c])


def _permute(builder: Any, vector: Any, index: Any) -> Any:
    """vector[index], lane by lane, by the low bits of the index."""
    name = "llvm.x86.avx512.permvar.sf.512" if LANES == 16 else "llvm.x86.avx2.permps"
    kind = ir.FunctionType(_VECTOR, [_VECTOR, _WORDS])
    return builder.call(builder.module.declare_intrinsic(name, fnty=kind), [vector, index])


class _Table:
    """The 16 levels in registers."""

    def __init__(self, builder: Any, pointer: Any) -> None:
        step = ir.Constant(_INDEX, LANES)
        self.low = load(builder, pointer, _VECTOR)
        self.high = None if LANES == 16 else load(builder, builder.gep(pointer, [step]), _VECTOR)

    def levels(self, builder: Any, words: Any, slot: int) -> Any:
        """Levels of the codes at bits 4 slot … of every word at the pointer.

        Whole bytes are shifted away by loading from further on, which leaves the arithmetic units to the rest.
        """
        words = load(builder, words, _WORDS)
        index = builder.lshr(words, ir.Constant(_WORDS, [4 * slot] * LANES)) if slot else words
        low = _permute(builder, self.low, index)
        if self.high is None:
            return low
        bit = builder.shl(index, ir.Constant(_WORDS, [28] * LANES))  # the fourth bit becomes the sign
        upper = builder.icmp_signed("<", bit, ir.Constant(_WORDS, [0] * LANES))
        return builder.select(upper, _permute(builder, self.high, index), low)


def _scales(builder: Any, pointer: Any, place: Any) -> Any:
    """The scale of every lane: the BLOCKS values at the pointer, picked by the lane's block."""
    few = load(builder, pointer, ir.VectorType(_FLOAT, BLOCKS))
    undefined = ir.Constant(few.type, ir.Undefined)
    mask = ir.Constant(ir.VectorType(_INT, LANES), [i % BLOCKS for i in range(LANES)])  # a broadcast while loading
    return _permute(builder, builder.shuffle_vector(few, undefined, mask), place)


class Loop:
    """for step in range(count), with values carried from one round to the next."""

    def __init__(self, builder: Any, count: Any, starts: list[Any]) -> None:
        self.builder = builder
        entry = builder.block
        self.head = builder.append_basic_block("loop.head")
        self.body = builder.append_basic_block("loop.body")
        self.done = builder.append_basic_block("loop.done")
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.step = builder.phi(_INDEX)
        self.step.add_incoming(ir.Constant(_INDEX, 0), entry)
        self.values = []
        for start in starts:
            phi = builder.phi(start.type)
            phi.add_incoming(start, entry)
            self.values.append(phi)
        builder.cbranch(builder.icmp_signed("<", self.step, count), self.body, self.done)
        builder.position_at_end(self.body)

    def close(self, values: list[Any]) -> None:
        """End of the body, with what the next round starts from."""
        following = self.builder.add(self.step, ir.Constant(_INDEX, 1))
        self.step.add_incoming(following, self.builder.block)
        for phi, value in zip(self.values, values, strict=True):
            phi.add_incoming(value, self.builder.block)
        self.builder.branch(self.head)
        self.builder.position_at_end(self.done)


def _dotter(tokens: int) -> Any:
    """Dot products of one packed row with ``tokens`` rows of inputs at once."""

    def dot(
        typingctx: Any, words: Any, w0: Any, chunks: Any, x: Any, x0: Any, stride: Any, table: Any, scale: Any, s0: Any,
        place: Any, shift: Any, out: Any,
    ) -> Any:  # fmt: skip
        """out[t] = Σ over SPAN · chunks columns of scale · level · x[x0 + t · stride + column].

        ``place`` (LANES,) is the block of each lane within a chunk; chunk c starts in block s0 + (SPAN · c >> shift).
        Every chunk is summed first, in two chains, and then scaled: one multiplication by a scale for eight by a level.
        Reads up to three bytes beyond the words and BLOCKS − 1 values beyond the scales.
        """
        size = types.intp
        signature = types.void(words, size, size, x, size, size, table, scale, size, place, size, out)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            start = builder.gep(data_of(context, builder, sig, args, 0), [args[1]])
            inputs = builder.gep(data_of(context, builder, sig, args, 3), [args[4]])
            rows = [builder.gep(inputs, [builder.mul(args[5], ir.Constant(_INDEX, t))]) for t in range(tokens)]
            levels = _Table(builder, data_of(context, builder, sig, args, 6))
            scales = builder.gep(data_of(context, builder, sig, args, 7), [args[8]])
            lane = load(builder, data_of(context, builder, sig, args, 9), _WORDS)
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            loop = Loop(builder, args[2], [zero] * tokens)
            chunk = builder.gep(start, [builder.mul(loop.step, ir.Constant(_INDEX, LANES))])
            column = builder.mul(loop.step, ir.Constant(_INDEX, SPAN))
            prefetch(builder, chunk, ir.Constant(_INDEX, _AHEAD))
            sums: list[list[Any]] = [[None, None] for _ in range(tokens)]
            for slot in range(8):
                level = levels.levels(builder, chunk, slot)
                for t in range(tokens):
                    at = builder.gep(rows[t], [builder.add(column, ir.Constant(_INDEX, slot * LANES))])
                    value, old = load(builder, at, _VECTOR), sums[t][slot % 2]
                    product = builder.fmul(level, value) if old is None else _multiply_add(builder, level, value, old)
                    sums[t][slot % 2] = product
            scaled = _scales(builder, builder.gep(scales, [builder.ashr(column, args[10])]), lane)
            loop.close([_multiply_add(builder, builder.fadd(*sums[t]), scaled, loop.values[t]) for t in range(tokens)])
            result = data_of(context, builder, sig, args, 11)
            for t, total in enumerate(loop.values):
                half = LANES // 2
                while half:
                    picked = ir.VectorType(_INT, half)
                    low = builder.shuffle_vector(total, total, ir.Constant(picked, list(range(half))))
                    high = builder.shuffle_vector(total, total, ir.Constant(picked, list(range(half, 2 * half))))
                    total = builder.fadd(low, high)
                    half //= 2
                builder.store(
                    builder.extract_element(total, ir.Constant(_INT, 0)), builder.gep(result, [ir.Constant(_INDEX, t)])
                )
            return context.get_dummy_value()

        return signature, codegen

    return primitive(dot)


TOKENS = 4
"""Most rows of inputs that one pass over the words serves."""
dot_row_1, dot_row_2, dot_row_3, dot_row_4 = (_dotter(tokens) for tokens in range(1, TOKENS + 1))


@primitive
def expand_row(
    typingctx: Any, words: Any, w0: Any, table: Any, scale: Any, s0: Any, place: Any, out: Any, o0: Any
) -> Any:
    """out[o0 + LANES · s + l] = scale · level of column 8 l + s, for one chunk; reads beyond its ends as dot does."""
    signature = types.void(words, types.intp, table, scale, types.intp, place, out, types.intp)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        chunk = builder.gep(data_of(context, builder, sig, args, 0), [args[1]])
        levels = _Table(builder, data_of(context, builder, sig, args, 2))
        lane = load(builder, data_of(context, builder, sig, args, 5), _WORDS)
        scaled = _scales(builder, builder.gep(data_of(context, builder, sig, args, 3), [args[4]]), lane)
        target = builder.gep(data_of(context, builder, sig, args, 6), [args[7]])
        for slot in range(8):
            value = builder.fmul(levels.levels(builder, chunk, slot), scaled)
            store(builder, value, builder.gep(target, [ir.Constant(_INDEX, slot * LANES)]))
        return context.get_dummy_value()

    return signature, codegen


def _multiplier(count: int) -> Any:
    """The product of a tile with inputs that fill ``count`` vectors."""

    def multiply(typingctx: Any, tile: Any, x: Any, x0: Any, out: Any) -> Any:
        """out[r, t] += Σ_p tile[r, p] x[x0 + p · width + t] over a chunk, ROWS[count] rows, width = count · LANES."""
        signature = types.void(tile, x, types.intp, out)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = data_of(context, builder, sig, args, 0)
            inputs = builder.gep(data_of(context, builder, sig, args, 1), [args[2]])
            result = data_of(context, builder, sig, args, 3)
            rows, width = ROWS[count], count * LANES
            places = [
                builder.gep(result, [ir.Constant(_INDEX, r * width + v * LANES)])
                for r in range(rows)
                for v in range(count)
            ]
            zero = ir.Constant(_VECTOR, [0.0] * LANES)  # a chunk by itself, then added: shorter chains of roundings
            loop = Loop(builder, ir.Constant(_INDEX, SPAN), [zero] * len(places))
            base = builder.gep(inputs, [builder.mul(loop.step, ir.Constant(_INDEX, width))])
            columns = [
                load(builder, builder.gep(base, [ir.Constant(_INDEX, v * LANES)]), _VECTOR) for v in range(count)
            ]
            updated = []
            for r in range(rows):
                place = builder.gep(values, [builder.add(loop.step, ir.Constant(_INDEX, r * SPAN))])
                spread = _splat(builder, builder.load(place), _VECTOR)
                for v in range(count):
                    updated.append(_multiply_add(builder, spread, columns[v], loop.values[r * count + v]))
            loop.close(updated)
            for place, value in zip(places, loop.values, strict=True):
                store(builder, builder.fadd(load(builder, place, _VECTOR), value), place)
            return context.get_dummy_value()

        return signature, codegen

    return primitive(multiply)


multiply_rows_1, multiply_rows_2, multiply_rows_3 = (_multiplier(count) for count in ROWS)

"""B: binary codes, their planes, and the product by tables, after :mod:`lowbit.reference.binary_coding`.

The product has two kernels, and :func:`product_path` says which one a call would take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.accel.common.binary_coding import binary_groups, check_binary_scale, check_flag, check_planes
from lowbit.accel.common.uniform import check_bits, code_range
from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    BINARY_METHODS,
    PRODUCT_METHODS,
    BinaryCode,
    BinaryMethod,
    PackedBinary,
    ProductMethod,
    Scheme,
)

from ._arrays import Array, fixed, integers, refuse_bad, weights, working_dtype
from ._binary_fit import assign_groups, fit_groups, refit_groups, value_groups
from ._binary_planes import (
    ROWS,
    add_strips,
    all_tables,
    expand,
    fill_tables,
    packer,
    permuted_strips,
    plan,
    shift_rows,
    unpacker,
)
from ._jit import by_pieces, share_claims
from ._lookup import has_permutes
from .uniform import _affine

__all__ = [
    "bcq",
    "bcq_assign",
    "bcq_from_grid",
    "bcq_pack",
    "bcq_product",
    "bcq_refit",
    "bcq_unpack",
    "bcq_weight",
    "lookup_tables",
    "product_path",
]

STRIP = 1024  # rows of a strip
SMALL = {"avx512": 1 << 20, "portable": 1 << 17}  # words of a product that is not worth waking a second thread for
TILE = 512  # columns of the weight that are expanded at a time
LOOKUPS = {"avx512": 80, "portable": 24}  # planes times inputs up to which looking up beats a dense product


# --- fitting ----------------------------------------------------------------------------------------------------------


def _run_groups(n: int, g: int, task: Callable[[slice], bool]) -> bool:
    """Run a kernel on pieces of groups; whether all of them say True."""
    return all(by_pieces((n, g), task, elements=1 << 15))


def _matrix(clause: str, name: str, x: Any) -> Array:
    a = weights(clause, name, x)
    if a.ndim != 2:
        raise SpecError(clause, f"{name} must have 2 dimensions, got shape {a.shape}")
    return a


def _codes(clause: str, codes: Any, shape: tuple[int, ...] | None, q: int) -> Array:
    """Codes of q planes as int32, of the given shape."""
    c = integers(clause, "codes", codes)
    if c.ndim != 2 or (shape is not None and c.shape != shape):
        raise SpecError(clause, f"codes of shape {c.shape} must have shape {shape or '(m, k)'}")
    refuse_codes(clause, c, 0, 2**q - 1)
    return c


def refuse_codes(clause: str, codes: Array, first: int, last: int) -> None:
    if codes.size and (codes.min() < first or codes.max() > last):
        i, j = (int(n) for n in np.argwhere((codes < first) | (codes > last))[0])
        raise SpecError(clause, f"code {codes[i, j]} at ({i}, {j}) is outside {first}..{last}")


def _scales(clause: str, scale: Any, offset: Any, shape: tuple[int, ...]) -> tuple[Array, Array | None, int, int]:
    """Checked scale (m, G, q) and offset (m, G); groups and planes."""
    s = weights(clause, "scale", scale)
    o = None if offset is None else weights(clause, "offset", offset)
    _, groups, q = check_binary_scale(clause, shape, s.shape, None if o is None else o.shape)
    dtype = working_dtype(s) if o is None else working_dtype(s, o)
    s = fixed(s, dtype)
    refuse_bad(clause, "scale", s)
    if o is not None:
        o = fixed(o, dtype)
        refuse_bad(clause, "offset", o)
    return s, o, groups, q


def bcq(
    w: Array,
    /,
    *,
    bits: int,
    group_size: int | None = None,
    method: BinaryMethod = "alternating",
    rounds: int = 15,
    offset: bool = False,
) -> BinaryCode[Array]:
    """Binary code of a weight.  [B-1, B-2, B-3]"""
    check_planes("B-1", "bits", bits)
    if method not in BINARY_METHODS:
        raise SpecError("B-1", f"method must be one of {', '.join(BINARY_METHODS)}, got {method!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, (int, np.integer)) or rounds < 0:
        raise SpecError("B-3", f"rounds must be an integer of at least 0, got {rounds!r}")
    shifted = check_flag("B-1", "offset", offset)
    given = _matrix("B-1", "w", w)
    m, k = given.shape
    groups = binary_groups("B-1", k, group_size)
    source = fixed(given, working_dtype(given))
    n, g = m * groups, k // groups if groups else 0
    values = source.reshape(n, g)
    codes, scale = np.empty((m, k), np.int32), np.zeros((m, groups, bits), source.dtype)
    shift = np.zeros((m, groups), source.dtype)
    flat = codes.reshape(n, g), scale.reshape(n, bits), shift.reshape(n)
    kind = BINARY_METHODS.index(method)
    if not _run_groups(
        n, g, lambda p: fit_groups(values[p], bits, kind, int(rounds), shifted, flat[0][p], flat[1][p], flat[2][p])
    ):
        refuse_bad("B-1", "w", source)
    return BinaryCode(codes, scale, shift if shifted else None)


def bcq_refit(
    w: Array, codes: Array, /, *, bits: int, group_size: int | None = None, offset: bool = False
) -> BinaryCode[Array]:
    """Least-squares scales of given codes.  [B-4]"""
    check_planes("B-4", "bits", bits)
    shifted = check_flag("B-4", "offset", offset)
    given = _matrix("B-4", "w", w)
    m, k = given.shape
    kept = _codes("B-4", codes, given.shape, bits)
    groups = binary_groups("B-4", k, group_size)
    source = fixed(given, working_dtype(given))
    n, g = m * groups, k // groups if groups else 0
    values, marks = source.reshape(n, g), kept.reshape(n, g)
    scale, shift = np.zeros((m, groups, bits), source.dtype), np.zeros((m, groups), source.dtype)
    flat = scale.reshape(n, bits), shift.reshape(n)
    if not _run_groups(n, g, lambda p: refit_groups(values[p], marks[p], bits, shifted, flat[0][p], flat[1][p])):
        refuse_bad("B-4", "w", source)
    return BinaryCode(kept.copy(), scale, shift if shifted else None)


def bcq_assign(w: Array, scale: Array, offset: Array | None, /) -> Array:
    """Codes of the nearest levels; a midpoint goes to the larger one.  [B-5]"""
    given = _matrix("B-5", "w", w)
    s, o, groups, q = _scales("B-5", scale, offset, given.shape)
    source = fixed(given, working_dtype(given))
    m, k = source.shape
    n, g = m * groups, k // groups if groups else 0
    shift = fixed(np.zeros((m, groups), s.dtype) if o is None else o)
    values, alpha, o = source.reshape(n, g), s.reshape(n, q), shift.reshape(n)
    codes = np.empty((m, k), np.int32)
    flat = codes.reshape(n, g)
    if not _run_groups(n, g, lambda p: assign_groups(values[p], alpha[p], o[p], q, flat[p])):
        refuse_bad("B-5", "w", source)
    return codes


def bcq_weight(codes: Array, scale: Array, offset: Array | None, /) -> Array:
    """Values offset + Σ ± scale of codes.  [B-6]"""
    c = integers("B-6", "codes", codes)
    s, o, groups, q = _scales("B-6", scale, offset, c.shape)
    m, k = c.shape
    n, g = m * groups, k // groups if groups else 0
    shift = fixed(np.zeros((m, groups), s.dtype) if o is None else o).reshape(n)
    marks, alpha = c.reshape(n, g), s.reshape(n, q)
    values = np.empty((m, k), s.dtype)
    flat = values.reshape(n, g)
    if not _run_groups(n, g, lambda p: value_groups(marks[p], alpha[p], shift[p], q, flat[p])):
        refuse_codes("B-6", c, 0, 2**q - 1)
    return values


def bcq_from_grid(
    codes: Array, scale: Array, zero_point: Array, /, *, bits: int, scheme: Scheme = "asymmetric"
) -> BinaryCode[Array]:
    """A uniform grid as a binary code: scale_i = s·2^(i−1), and an offset.  [B-7]"""
    check_bits(bits, scheme)
    first, last = code_range(bits, scheme)
    c = integers("B-7", "codes", codes)
    if c.ndim != 2:
        raise SpecError("B-7", f"codes must have 2 dimensions, got shape {c.shape}")
    flat_scale, flat_zero, _ = _affine("B-7", scale, zero_point, c.shape)
    refuse_codes("B-7", c, first, last)
    shape = (c.shape[0], np.shape(scale)[-1])
    s, z = flat_scale.reshape(shape), flat_zero.reshape(shape)
    alpha = s[..., None] * np.ldexp(s.dtype.type(1), np.arange(bits) - 1).astype(s.dtype)
    shift = s.astype(np.float64) * ((2**bits - 1) / 2 + first - z.astype(np.float64))
    return BinaryCode(c - np.int32(first), alpha, shift.astype(s.dtype))


# --- planes -----------------------------------------------------------------------------------------------------------


def bcq_pack(codes: Array, scale: Array, offset: Array | None, /) -> PackedBinary[Array]:
    """Bit planes as the product reads them, rows running fastest.  [B-8]"""
    c = integers("B-8", "codes", codes)
    s, o, _, q = _scales("B-8", scale, offset, c.shape)
    m, k = c.shape
    planes = np.zeros((-(-k // 32), q, m), np.int32)
    run = packer(q)
    if any(not 0 <= seen < 2**q for seen in by_pieces((m, k), lambda p: run(c[p], planes[..., p]))):
        refuse_codes("B-8", c, 0, 2**q - 1)
    return PackedBinary(
        planes, np.ascontiguousarray(s.transpose(1, 2, 0)), None if o is None else np.ascontiguousarray(o.T)
    )


def _packed(clause: str, planes: Any, scale: Any, offset: Any, k: int) -> tuple[Array, Array, Array | None]:
    """Planes (words, q, m), scale (G, q, m) and offset (G, m) of shapes that fit, in one precision."""
    p = integers(clause, "planes", planes)
    if p.ndim != 3:
        raise SpecError(clause, f"planes must have shape (words, planes, rows), got {p.shape}")
    s = weights(clause, "scale", scale)
    o = None if offset is None else weights(clause, "offset", offset)
    if s.ndim != 3:
        raise SpecError(clause, f"scale must have shape (groups, planes, rows), got {s.shape}")
    groups, q, m = s.shape
    check_binary_scale(clause, (p.shape[2], k), (m, groups, q), None if o is None else o.shape[::-1])
    if p.shape != (-(-k // 32), q, m):
        raise SpecError(clause, f"{k} columns take planes of shape {(-(-k // 32), q, m)}, got {p.shape}")
    dtype = working_dtype(s) if o is None else working_dtype(s, o)
    return p, fixed(s, dtype), None if o is None else fixed(o, dtype)


def _refuse_values(clause: str, **values: Array | None) -> None:
    """Refuse NaN and infinities in any of the arrays."""
    for name, value in values.items():
        if value is not None:
            refuse_bad(clause, name, value)


def _unpacked(planes: Array, k: int) -> Array:
    _, q, m = planes.shape
    codes = np.empty((m, k), np.int32)
    run = unpacker(q)
    by_pieces((m, k), lambda p: run(planes[..., p], codes[p]))
    return codes


def bcq_unpack(planes: Array, scale: Array, offset: Array | None, /, *, length: int) -> BinaryCode[Array]:
    """The code that was packed.  [B-8]"""
    if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 0:
        raise SpecError("B-8", f"length must be an integer of at least 0, got {length!r}")
    p, s, o = _packed("B-8", planes, scale, offset, int(length))
    _refuse_values("B-8", scale=s, offset=o)
    return BinaryCode(
        _unpacked(p, int(length)),
        np.ascontiguousarray(s.transpose(2, 0, 1)),
        None if o is None else np.ascontiguousarray(o.T),
    )


# --- products ---------------------------------------------------------------------------------------------------------


def lookup_tables(x: Array, /, *, width: int = 8, half: bool = False) -> Array:
    """All signed sums of every ``width`` consecutive inputs.  [B-9]"""
    check_planes("B-9", "width", width, 16)
    halved = check_flag("B-9", "half", half)
    given = _matrix("B-9", "x", x)
    source = fixed(given, working_dtype(given))
    refuse_bad("B-9", "x", source)
    t, k = source.shape
    out = np.empty((t, -(-k // width), 2 ** (width - halved)), source.dtype)
    all_tables(source, width, not halved, out)
    return out


def product_path(dtype: Any = np.float32, *, inputs: int = 1, bits: int = 1, method: ProductMethod = "auto") -> str:
    """What :func:`bcq_product` would run: "avx512", "portable" or "dequantize".

    Args:
        dtype: precision of inputs and scales.
        inputs: rows of x.
        bits: planes of the weight.
        method: as asked of the product.
    """
    path = "avx512" if np.dtype(dtype) != np.float64 and has_permutes() else "portable"
    if method == "dequantize" or (method == "auto" and inputs * bits > LOOKUPS[path]):
        return "dequantize"
    return path


def bcq_product(
    x: Array, planes: Array, scale: Array, offset: Array | None, /, *, method: ProductMethod = "auto"
) -> Array:
    """y = x Ŵᵀ from packed planes.  [B-10]"""
    if method not in PRODUCT_METHODS:
        raise SpecError("B-10", f"method must be one of {', '.join(PRODUCT_METHODS)}, got {method!r}")
    given = _matrix("B-10", "x", x)
    t, k = given.shape
    p, s, o = _packed("B-10", planes, scale, offset, k)
    dtype = working_dtype(given, s)
    source, s = fixed(given, dtype), fixed(s, dtype)
    o = None if o is None else fixed(o, dtype)
    y = np.zeros((t, s.shape[2]), dtype)
    if y.size and k:
        path = product_path(dtype, inputs=t, bits=s.shape[1], method=method)
        (_dense_product if path == "dequantize" else _lookup_product)(source, p, s, o, y)
        if bool(np.isfinite(y).all()):  # a bad input or scale would have spoiled an output: no pass over the scales
            return y
    _refuse_values("B-10", x=source, scale=s, offset=o)
    return y


def _lookup_product(source: Array, p: Array, s: Array, o: Array | None, y: Array) -> None:
    """y += x Ŵᵀ by tables."""
    (t, k), (groups, q, m), dtype = source.shape, s.shape, y.dtype
    path = product_path(dtype, method="lookup")
    width = 4 if path == "avx512" else 8
    blocks = plan(k, groups)
    spread = int(blocks[-1, 3] + blocks[-1, 1]) * (32 // width) * 2**width
    tables, sums = np.empty((t, spread), dtype), np.empty((t, 0 if o is None else groups), dtype)
    for n in range(t):
        fill_tables(source[n], k, groups, blocks, width, tables[n], sums[n])
    words, alpha = p.reshape(-1), s.reshape(-1)
    strip = STRIP if p.size * t > SMALL[path] else m
    whole = m - m % ROWS if path == "avx512" else 0
    if whole:
        share_claims(
            -(-whole // strip),
            lambda turn: permuted_strips(words, alpha, q, m, whole, strip, blocks, tables, y, turn),
        )
    if whole < m:

        def work(p: slice) -> None:
            _finish(source, words, alpha, q, m, whole + p.start, whole + p.stop, blocks, tables, width, y)

        by_pieces((m - whole, 1), work, elements=strip)
    if o is not None:
        for n in range(t):
            shift_rows(o, sums[n], 0, m, y[n])


def _finish(
    x: Array, words: Array, alpha: Array, q: int, m: int, r0: int, r1: int, blocks: Array, tables: Array, width: int,
    y: Array,
) -> None:  # fmt: skip
    """Rows by the portable kernel: all of them, or the fewer than 16 that registers leave over."""
    groups = alpha.size // (q * m)
    buffer = np.empty(r1 - r0, y.dtype)
    for n in range(len(y)):
        own = tables[n]
        if width != 8:
            own = np.empty(int(blocks[-1, 3] + blocks[-1, 1]) * 1024, y.dtype)
            fill_tables(x[n], x.shape[1], groups, blocks, 8, own, np.empty(0, y.dtype))
        add_strips(words, alpha, q, m, r0, r1, blocks, own, y[n], buffer)


def _dense_product(x: Array, planes: Array, scale: Array, offset: Array | None, y: Array) -> None:
    """Tiles of the weight in cache, multiplied by the library's matrix product."""
    k = x.shape[1]
    shift = fixed(np.zeros((len(scale), scale.shape[2]), scale.dtype) if offset is None else offset)
    g = k // len(scale)

    def work(p: slice) -> None:
        r0, r1 = p.start, p.stop
        tile = np.empty((min(k, TILE), r1 - r0), y.dtype)
        for k0 in range(0, k, TILE):
            k1 = min(k0 + TILE, k)
            part = tile[: k1 - k0]
            expand(planes, scale, shift, g, k0, k1, r0, r1, part)
            y[:, r0:r1] += x[:, k0:k1] @ part

    by_pieces((y.shape[1], 1), work, elements=256)

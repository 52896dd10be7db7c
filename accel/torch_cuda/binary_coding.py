"""Chapter B: binary codes, their planes, and the product by tables, on tensors of any device.

Fitting sorts every group once. Its levels then cut the sorted weights into runs, a binary search finds the cuts, and
prefix sums in float64 give what the least squares need: a round costs 2^q searches per group instead of a pass over
its weights. Groups are worked on side by side, with small systems solved element by element for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

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

from . import triton
from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
from .policy import by_kernel
from .uniform import check_grid

__all__ = [
    "bcq",
    "bcq_assign",
    "bcq_from_grid",
    "bcq_pack",
    "bcq_product",
    "bcq_product_checked",
    "bcq_refit",
    "bcq_unpack",
    "bcq_weight",
    "lookup_tables",
]

triton.KERNELS.update(bcq_product=triton.anything)

_RANK_CUT = 2.0**-12  # an eigenvalue or pivot of the Gram matrix of at most nine ±1 columns is 0 or above this
_LOOKUPS = 2  # planes times inputs up to which "auto" looks up: gathers are dear on a CPU


# --- groups and levels ------------------------------------------------------------------------------------------------


def _signs(count: int, q: int, device: torch.device) -> Tensor:
    """±1 of the bits of 0 … count − 1, (count, q) in float64."""
    codes = torch.arange(count, device=device)
    return (2 * ((codes[:, None] >> torch.arange(q, device=device)) & 1) - 1).double()


def _levels(alpha: Tensor, shift: Tensor) -> Tensor:
    """(n, q), (n,) → (n, 2^q), by doubling: level[c + 2^i] = level[c] + 2 α_i."""
    level = (shift - alpha.sum(-1))[:, None]
    for i in range(alpha.shape[1]):
        level = torch.cat([level, level + 2 * alpha[:, i : i + 1]], 1)
    return level


def _ordered(level: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes by ascending level, and the midpoints rounded up in the precision of the weights."""
    value, order = torch.sort(level, dim=1, stable=True)
    middle = value[:, :-1] + (value[:, 1:] - value[:, :-1]) / 2
    limit = middle.to(dtype)
    above = torch.nextafter(limit, torch.full_like(limit, math.inf))
    return order, torch.where(limit.double() < middle, above, limit)


def _nearest(v: Tensor, order: Tensor, limit: Tensor) -> Tensor:
    """Codes (n, g) of weights: how many thresholds each reaches, and the code of that place."""
    place = torch.searchsorted(limit.contiguous(), v.contiguous(), right=True)
    return torch.gather(order, 1, place)


def _solve(gram: Tensor, rhs: Tensor) -> Tensor:
    """gram⁺ rhs, (n, p, p) and (n, p): elimination for all systems at once, eigenvectors for the singular ones."""
    p = gram.shape[-1]
    a, b = gram.clone(), rhs.clone()
    least = torch.full_like(b[:, 0], math.inf)
    for i in range(p):
        pivot = a[:, i, i]
        least = torch.minimum(least, pivot)
        safe = torch.where(pivot < _RANK_CUT, 1.0, pivot)
        for j in range(i + 1, p):
            factor = a[:, j, i] / safe
            a[:, j] -= factor[:, None] * a[:, i]
            b[:, j] -= factor * b[:, i]
    x = torch.zeros_like(b)
    for i in reversed(range(p)):
        rest = (a[:, i, i + 1 :] * x[:, i + 1 :]).sum(-1)
        x[:, i] = (b[:, i] - rest) / torch.where(a[:, i, i] < _RANK_CUT, 1.0, a[:, i, i])
    singular = torch.nonzero(least < _RANK_CUT)[:, 0]
    if singular.numel():
        value, vector = torch.linalg.eigh(gram[singular])
        inverse = torch.where(value > _RANK_CUT, 1 / value.clamp(min=_RANK_CUT), 0.0)
        part = (vector.mT @ rhs[singular, :, None])[..., 0] * inverse
        x[singular] = (vector @ part[..., None])[..., 0]
    return x


def _fit(signs: Tensor, count: Tensor, total: Tensor, offset: bool) -> tuple[Tensor, Tensor]:
    """Scales (n, q) and offset (n,) from signs (…, c, q), counts and sums (n, c) of every run of weights."""
    if offset:
        signs = torch.cat([signs, torch.ones_like(signs[..., :1])], -1)
    gram = (signs * count.double()[..., None]).mT @ signs
    x = _solve(gram, (signs * total[..., None]).sum(-2))
    return (x[:, :-1], x[:, -1]) if offset else (x, torch.zeros_like(x[:, 0]))


def _tally(v: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many weights of a group have each code, and their sum in float64, (n, size)."""
    count = torch.zeros((v.shape[0], size), dtype=torch.int64, device=v.device)
    total = torch.zeros((v.shape[0], size), dtype=torch.float64, device=v.device)
    count.scatter_add_(1, codes, torch.ones_like(codes))
    total.scatter_add_(1, codes, v.double())
    return count, total


def _refit(v: Tensor, codes: Tensor, q: int, offset: bool) -> tuple[Tensor, Tensor]:
    """Least squares on given codes.  [B-4]"""
    size = 1 << q
    return _fit(_signs(size, q, v.device), *_tally(v, codes, size), offset)


def _greedy(v: Tensor, q: int, offset: bool, refined: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Planes one by one from the residual, in float64.  [B-1, B-2]"""
    n, g = v.shape
    wide = v.double()
    shift = wide.sum(1) / max(g, 1) if offset else torch.zeros(n, dtype=torch.float64, device=v.device)
    residual = wide - shift[:, None]
    codes = torch.zeros((n, g), dtype=torch.int64, device=v.device)
    alpha = torch.zeros((n, q), dtype=torch.float64, device=v.device)
    for i in range(q):
        plus = residual >= 0
        codes |= plus.long() << i
        alpha[:, i] = residual.abs().sum(1) / max(g, 1)
        if refined:
            alpha[:, : i + 1], shift = _refit(v, codes, i + 1, offset)
            residual = wide - torch.gather(_levels(alpha[:, : i + 1], shift), 1, codes)
        else:
            residual = residual - torch.where(plus, alpha[:, i : i + 1], -alpha[:, i : i + 1])
    return codes, alpha, shift


def _alternate(v: Tensor, codes: Tensor, q: int, rounds: int, offset: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds of nearest levels and least squares, on sorted groups with prefix sums.  [B-3]"""
    n, g = v.shape
    alpha, shift = _refit(v, codes, q, offset)
    if rounds and n and g:
        ascending = torch.sort(v, dim=1).values
        prefix = torch.zeros((n, g + 1), dtype=torch.float64, device=v.device)
        torch.cumsum(ascending, 1, dtype=torch.float64, out=prefix[:, 1:])
        signs = _signs(1 << q, q, v.device)
        whole = torch.tensor([[g]], device=v.device).expand(n, 1)
        first = torch.zeros_like(whole)
        before = order = limit = None
        for _ in range(rounds):
            order, limit = _ordered(_levels(alpha, shift), v.dtype)
            # weights below a threshold lie left of it: those that reach it count for the level above
            cuts = torch.searchsorted(ascending, limit.contiguous(), right=False)
            now = torch.cat([cuts, order], 1)
            if before is not None and torch.equal(now, before):  # a fixed point of every group
                break
            before = now
            edge = torch.cat([first, cuts, whole], 1)
            at = torch.gather(prefix, 1, edge)
            alpha, shift = _fit(signs[order], edge.diff(dim=1), at.diff(dim=1), offset)
        assert order is not None
        assert limit is not None
        codes = _nearest(v, order, limit)
    return _canonical(codes, alpha, shift)


def _canonical(codes: Tensor, alpha: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales ≥ 0 and descending, planes flipped and exchanged accordingly."""
    q = alpha.shape[1]
    bits = torch.arange(q, device=alpha.device)
    codes = codes ^ ((alpha < 0).long() << bits).sum(1)[:, None]
    alpha, order = torch.sort(alpha.abs(), dim=1, descending=True, stable=True)
    renamed = torch.zeros_like(codes)
    for i in range(q):
        renamed |= ((codes >> order[:, i : i + 1]) & 1) << i
    return renamed, alpha, shift


def _unit(v: Tensor) -> Tensor:
    """Power of two at or below the largest magnitude of every group as (mantissa factor pair), (n, 1) exponents."""
    if not v.shape[1]:
        return torch.zeros((v.shape[0], 1), dtype=torch.int32, device=v.device)
    most = v.abs().amax(1, keepdim=True)
    return torch.where(most > 0, torch.frexp(most).exponent - 1, 0).to(torch.int32)


def _shifted(x: Tensor, exponent: Tensor) -> Tensor:
    """x · 2^exponent in two factors that are both representable."""
    half = exponent.long() >> 1
    return x * _power(half) * _power(exponent.long() - half)


def _power(exponent: Tensor) -> Tensor:
    """2^exponent in float64 by its bits: exact, which a power function need not be."""
    return ((exponent + 1023) << 52).view(torch.float64)


def _by_groups(
    w: Tensor, groups: int, q: int, fit: Callable[[Tensor, slice], tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a fit on runs of scaled groups: codes (m, k), scale (m, G, q), offset (m, G)."""
    m, k = w.shape
    n, g = m * groups, k // groups if groups else 0
    v = w.reshape(n, g)
    codes = torch.zeros((n, g), dtype=torch.int32, device=w.device)
    scale = torch.zeros((n, q), dtype=w.dtype, device=w.device)
    shift = torch.zeros(n, dtype=w.dtype, device=w.device)
    for rows in row_chunks(n, max(g, 1), w.device, elements=1 << 20 if w.device.type == "cpu" else None):
        part = v[rows]
        unit = _unit(part)
        found, alpha, o = fit(_shifted(part.double(), -unit).to(w.dtype), rows)
        codes[rows] = found.to(torch.int32)
        scale[rows] = _shifted(alpha, unit).to(w.dtype)
        shift[rows] = _shifted(o, unit[:, 0]).to(w.dtype)
    return codes.view(m, k), scale.view(m, groups, q), shift.view(m, groups)


# --- checks -----------------------------------------------------------------------------------------------------------


def _matrix(clause: str, name: str, x: Tensor, like: Tensor | None = None) -> Tensor:
    x = as_weights(clause, name, x, like=like)
    if x.ndim != 2:
        raise SpecError(clause, f"{name} must have 2 dimensions, got shape {tuple(x.shape)}")
    refuse_nan(clause, name, x)
    return x.to(working_dtype(x))


def _codes(clause: str, codes: Tensor, last: int, first: int = 0, like: Tensor | None = None) -> Tensor:
    codes = as_integers(clause, "codes", codes, like=like)
    if codes.ndim != 2:
        raise SpecError(clause, f"codes must have 2 dimensions, got shape {tuple(codes.shape)}")
    if codes.numel():
        low, high = (int(t) for t in torch.aminmax(codes))
        if low < first or high > last:
            raise SpecError(clause, f"codes must lie in {first}..{last}, got {low if low < first else high}")
    return codes


def _scales(
    clause: str, scale: Tensor, offset: Tensor | None, shape: torch.Size, like: Tensor
) -> tuple[Tensor, Tensor | None, int, int]:
    """Checked scale (m, G, q) and offset (m, G) in one precision; groups and planes."""
    scale = as_weights(clause, "scale", scale, like=like)
    offset = None if offset is None else as_weights(clause, "offset", offset, like=like)
    _, groups, q = check_binary_scale(clause, shape, scale.shape, None if offset is None else offset.shape)
    refuse_nan(clause, "scale", scale)
    dtype = working_dtype(scale)
    if offset is not None:
        refuse_nan(clause, "offset", offset)
        dtype = working_dtype(scale, offset)
        offset = offset.to(dtype)
    return scale.to(dtype), offset, groups, q


# --- operations -------------------------------------------------------------------------------------------------------


@operation
def bcq(
    w: Tensor,
    /,
    *,
    bits: int,
    group_size: int | None = None,
    method: BinaryMethod = "alternating",
    rounds: int = 15,
    offset: bool = False,
) -> BinaryCode[Tensor]:
    """Binary code of a weight.  [B-1, B-2, B-3]"""
    check_planes("B-1", "bits", bits)
    if method not in BINARY_METHODS:
        raise SpecError("B-1", f"method must be one of {', '.join(BINARY_METHODS)}, got {method!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise SpecError("B-3", f"rounds must be an integer of at least 0, got {rounds!r}")
    shifted = check_flag("B-1", "offset", offset)
    w = _matrix("B-1", "w", w)
    groups = binary_groups("B-1", w.shape[1], group_size)

    def fit(v: Tensor, _: slice) -> tuple[Tensor, Tensor, Tensor]:
        found = _greedy(v, bits, shifted, method == "refined")
        return _alternate(v, found[0], bits, rounds, shifted) if method == "alternating" else found

    codes, scale, shift = _by_groups(w, groups, bits, fit)
    return BinaryCode(codes, scale, shift if shifted else None)


@operation
def bcq_refit(
    w: Tensor, codes: Tensor, /, *, bits: int, group_size: int | None = None, offset: bool = False
) -> BinaryCode[Tensor]:
    """Least-squares scales of given codes.  [B-4]"""
    check_planes("B-4", "bits", bits)
    shifted = check_flag("B-4", "offset", offset)
    w = _matrix("B-4", "w", w)
    codes = _codes("B-4", codes, 2**bits - 1, like=w)
    if codes.shape != w.shape:
        raise SpecError("B-4", f"codes of shape {tuple(codes.shape)} must have the shape of w, {tuple(w.shape)}")
    groups = binary_groups("B-4", w.shape[1], group_size)
    n = w.shape[0] * groups
    kept = codes.reshape(n, w.shape[1] // groups if groups else 0).long()
    found, scale, shift = _by_groups(w, groups, bits, lambda v, r: (kept[r], *_refit(v, kept[r], bits, shifted)))
    return BinaryCode(found, scale, shift if shifted else None)


@operation
def bcq_assign(w: Tensor, scale: Tensor, offset: Tensor | None, /) -> Tensor:
    """Codes of the nearest levels; a midpoint goes to the larger one.  [B-5]"""
    w = _matrix("B-5", "w", w)
    scale, offset, groups, q = _scales("B-5", scale, offset, w.shape, w)
    m, k = w.shape
    n, g = m * groups, k // groups if groups else 0
    v, alpha = w.reshape(n, g), scale.reshape(n, q).double()
    shift = torch.zeros(n, dtype=torch.float64, device=w.device) if offset is None else offset.reshape(n).double()
    codes = torch.empty((n, g), dtype=torch.int32, device=w.device)
    for rows in row_chunks(n, max(g, 1), w.device):
        codes[rows] = _nearest(v[rows], *_ordered(_levels(alpha[rows], shift[rows]), w.dtype)).to(torch.int32)
    return codes.view(m, k)


@operation
def bcq_weight(codes: Tensor, scale: Tensor, offset: Tensor | None, /) -> Tensor:
    """Values offset + Σ ± scale of codes.  [B-6]"""
    codes = as_integers("B-6", "codes", codes)
    scale, offset, groups, q = _scales("B-6", scale, offset, codes.shape, codes)
    codes = _codes("B-6", codes, 2**q - 1)
    m, k = codes.shape
    n, g = m * groups, k // groups if groups else 0
    shift = torch.zeros((m, groups), dtype=scale.dtype, device=scale.device) if offset is None else offset
    level = _levels(scale.reshape(n, q).double(), shift.reshape(n).double()).to(scale.dtype)
    values = torch.empty((n, g), dtype=scale.dtype, device=scale.device)
    flat = codes.reshape(n, g)
    for rows in row_chunks(n, max(g, 1), scale.device):
        values[rows] = torch.gather(level[rows], 1, flat[rows].long())
    return values.view(m, k)


@operation
def bcq_from_grid(
    codes: Tensor, scale: Tensor, zero_point: Tensor, /, *, bits: int, scheme: Scheme = "asymmetric"
) -> BinaryCode[Tensor]:
    """A uniform grid as a binary code: scale_i = s·2^(i−1), and an offset.  [B-7]"""
    check_bits(bits, scheme)
    first, last = code_range(bits, scheme)
    codes = _codes("B-7", codes, last, first)
    scale, zero_point = check_grid("B-7", scale, zero_point, codes)
    m, k = codes.shape
    if scale.ndim != 2 or scale.shape[0] not in (1, m) or (k % scale.shape[1] if scale.shape[1] else k):
        raise SpecError("B-7", f"{scale.shape[-1:]} scales of shape {tuple(scale.shape)} do not cover codes {(m, k)}")
    dtype = working_dtype(scale)
    s = scale.to(dtype).expand(m, -1)
    power = torch.tensor([2.0 ** (i - 1) for i in range(bits)], dtype=dtype, device=s.device)
    middle = (2**bits - 1) / 2 + first - zero_point.double()
    return BinaryCode((codes - first).to(torch.int32), s[..., None] * power, (s.double() * middle).to(dtype))


@operation
def bcq_pack(codes: Tensor, scale: Tensor, offset: Tensor | None, /) -> PackedBinary[Tensor]:
    """Bit planes as the product reads them, rows running fastest.  [B-8]"""
    codes = as_integers("B-8", "codes", codes)
    scale, offset, _, q = _scales("B-8", scale, offset, codes.shape, codes)
    codes = _codes("B-8", codes, 2**q - 1)
    m, k = codes.shape
    words = -(-k // 32)
    planes = torch.zeros((words, q, m), dtype=torch.int32, device=codes.device)
    for j in range(min(k, 32)):
        column = codes[:, j::32].to(torch.int32).t()  # one bit position of every word, (words or one less, m)
        for i in range(q):
            planes[: column.shape[0], i] |= ((column >> i) & 1) << j
    shift = None if offset is None else offset.t().contiguous()
    return PackedBinary(planes, scale.permute(1, 2, 0).contiguous(), shift)


def _check_packed(
    clause: str, planes: Tensor, scale: Tensor, offset: Tensor | None, k: int, like: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    planes = as_integers(clause, "planes", planes, like=like)
    if planes.ndim != 3 or planes.dtype != torch.int32:
        raise SpecError(clause, f"planes must be int32 (words, planes, rows), got {planes.dtype} {tuple(planes.shape)}")
    scale = as_weights(clause, "scale", scale, like=planes)
    if scale.ndim != 3:
        raise SpecError(clause, f"scale must have shape (groups, planes, rows), got {tuple(scale.shape)}")
    groups, q, m = scale.shape
    offset = None if offset is None else as_weights(clause, "offset", offset, like=planes)
    reversed_ = None if offset is None else tuple(offset.shape)[::-1]
    check_binary_scale(clause, (planes.shape[2], k), (m, groups, q), reversed_)
    if planes.shape != (-(-k // 32), q, m):
        raise SpecError(clause, f"{k} columns take planes of shape {(-(-k // 32), q, m)}, got {tuple(planes.shape)}")
    refuse_nan(clause, "scale", scale)
    dtype = working_dtype(scale)
    if offset is not None:
        refuse_nan(clause, "offset", offset)
        dtype = working_dtype(scale, offset)
        offset = offset.to(dtype)
    return planes, scale.to(dtype), offset


def _bits(planes: Tensor, k: int) -> Tensor:
    """Bits of packed planes as int32, (k, q, rows)."""
    position = torch.arange(32, dtype=torch.int32, device=planes.device)[None, :, None, None]
    return ((planes[:, None] >> position) & 1).reshape(-1, *planes.shape[1:])[:k]


@operation
def bcq_unpack(planes: Tensor, scale: Tensor, offset: Tensor | None, /, *, length: int) -> BinaryCode[Tensor]:
    """The code that was packed.  [B-8]"""
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise SpecError("B-8", f"length must be a non-negative integer, got {length!r}")
    planes, scale, offset = _check_packed("B-8", planes, scale, offset, length)
    q, m = planes.shape[1:]
    codes = torch.zeros((m, length), dtype=torch.int32, device=planes.device)
    power = torch.arange(q, dtype=torch.int32, device=planes.device)[:, None]
    for rows in row_chunks(m, length * q, planes.device):
        codes[rows] = (_bits(planes[..., rows], length) << power).sum(1, dtype=torch.int32).t()
    shift = None if offset is None else offset.t().contiguous()
    return BinaryCode(codes, scale.permute(2, 0, 1).contiguous(), shift)


def _tables(x: Tensor, width: int, half: bool) -> Tensor:
    """Signed sums of every ``width`` inputs, (t, chunks, 2^width) or half of them, by doubling."""
    t, k = x.shape
    chunks = -(-k // width)
    padded = torch.zeros((t, chunks * width), dtype=x.dtype, device=x.device)
    padded[:, :k] = x
    parts = padded.view(t, chunks, width)
    table = -parts.sum(-1, keepdim=True)
    for s in range(width - half):
        table = torch.cat([table, table + 2 * parts[..., s : s + 1]], -1)
    return table


@operation
def lookup_tables(x: Tensor, /, *, width: int = 8, half: bool = False) -> Tensor:
    """All signed sums of every ``width`` consecutive inputs.  [B-9]"""
    check_planes("B-9", "width", width, 16)
    halved = check_flag("B-9", "half", half)
    return _tables(_matrix("B-9", "x", x), width, halved)


def dense_weight(planes: Tensor, scale: Tensor, offset: Tensor | None, k: int) -> Tensor:
    """Ŵᵀ, (k, m), from packed planes; differentiable in scale and offset."""
    groups, q, m = scale.shape
    g = k // groups if groups else 0
    value = torch.zeros((groups, g, m), dtype=scale.dtype, device=scale.device)
    if offset is not None:
        value = value + offset[:, None]
    bits = _bits(planes, k).reshape(groups, g, q, m)
    for i in range(q):
        sign = bits[:, :, i].to(scale.dtype).mul_(2).sub_(1)
        value = value + sign * scale[:, None, i]
    return value.reshape(k, m)


def check_product(
    x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, method: str
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Everything :func:`bcq_product` refuses; the arguments in one precision."""
    if method not in PRODUCT_METHODS:
        raise SpecError("B-10", f"method must be one of {', '.join(PRODUCT_METHODS)}, got {method!r}")
    x = _matrix("B-10", "x", x)
    planes, scale, offset = _check_packed("B-10", planes, scale, offset, x.shape[1], like=x)
    dtype = working_dtype(x, scale)
    return x.to(dtype), planes, scale.to(dtype), None if offset is None else offset.to(dtype)


def bcq_product_checked(
    x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, /, *, method: ProductMethod = "auto"
) -> Tensor:
    """The product of arguments that are known to fit and share a dtype; layers call it, NaN passes through it."""
    if method != "dequantize" and by_kernel("bcq_product", x):
        product: Tensor = triton.launcher("binary_coding").bcq_product(x, planes, scale, offset)
        return product
    (t, k), (groups, q, m) = x.shape, scale.shape
    if 0 in (t, k, m):
        return torch.zeros((t, m), dtype=x.dtype, device=x.device)
    if method == "dequantize" or (method == "auto" and t * q > _LOOKUPS):
        y = torch.empty((t, m), dtype=x.dtype, device=x.device)
        for rows in row_chunks(m, k * q, x.device):
            shift = None if offset is None else offset[:, rows]
            y[:, rows] = x @ dense_weight(planes[..., rows], scale[..., rows], shift, k)
        return y
    g = k // groups
    y = torch.zeros((t, m), dtype=x.dtype, device=x.device)
    for group in range(groups):
        start, end = group * g, group * g + g
        word, stop = start // 32, -(-end // 32)
        inside = torch.zeros((t, (stop - word) * 32), dtype=x.dtype, device=x.device)
        inside[:, start - word * 32 : end - word * 32] = x[:, start:end]  # other groups' columns count as zeros
        table = _tables(inside, 8, False)  # (t, bytes, 256)
        own = planes[word:stop]
        for i in range(q):
            total = torch.zeros((t, m), dtype=x.dtype, device=x.device)
            for byte in range(table.shape[1]):
                key = (own[byte // 4, i] >> (8 * (byte % 4))) & 255
                total += table[:, byte, key.long()]
            y += scale[group, i] * total
        if offset is not None:
            y += offset[group] * x[:, start:end].sum(1, keepdim=True)
    return y


@operation
def bcq_product(
    x: Tensor, planes: Tensor, scale: Tensor, offset: Tensor | None, /, *, method: ProductMethod = "auto"
) -> Tensor:
    """y = x Ŵᵀ from packed planes.  [B-10]"""
    return bcq_product_checked(*check_product(x, planes, scale, offset, method), method=method)

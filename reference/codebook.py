"""N: codebooks. A value is a level from a short table, times the scale of the block that it lies in.

    ŵ_i = s_⌊i/B⌋ · l_{c_i}          i counts the flattened weight, row after row                     (N.1)

NormalFloat puts the levels at quantiles of the normal distribution, so that normal weights use them about equally.
The levels are an argument of every operation here: NF4, NF3, NF2, a table read from a checkpoint, or one of your own.

Blocks run over the flattened array, as in QLoRA, LoftQ and bitsandbytes. Where the row length is a multiple of the
block size they are groups of a row; where it is not, a block continues in the next row and the last may be short.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from . import checks
from .checks import F64, I32, Array
from .errors import SpecError
from .packing import unpack
from .rounding import nearest_level
from .types import DoubleScale

__all__ = [
    "block_scale",
    "codebook_matmul",
    "dequantize_blocks",
    "dequantize_scale",
    "dynamic_float",
    "normal_float",
    "quantize_blocks",
    "quantize_scale",
]

NF_OFFSET = 0.9677083
"""The published outermost probability: ½ ((1 − 1/32) + (1 − 1/30)), cut after seven digits."""


def normal_float(*, bits: int, offset: float = NF_OFFSET) -> F64:
    """NormalFloat levels of any width, ascending.  [N-1]

        h = 2^(b−1)
        Φ⁻¹(p_i),    i = 0 … h − 1,   p_i = o − i (o − ½) / h           h levels above 0             (N.2)
        0                                                                                            (N.3)
        −Φ⁻¹(p_i),   i = 0 … h − 2,   p_i = o − i (o − ½) / (h − 1)     h − 1 levels below 0         (N.4)
        all divided by Φ⁻¹(o)

    Shapes: → float64 (2^b,), the first −1, the last 1, one of them 0; 2 ≤ b ≤ 8, ½ < offset < 1.
    There is one more level above 0 than below. The constant comes from the quantiles of 16 levels; LoftQ keeps it for
    every width, and so does the default here.
    Source: Dettmers et al. 2023, QLoRA, eq. 4 and its code; Li et al. 2023, LoftQ, for other widths.

    >>> normal_float(bits=2).round(4).tolist()
    [-1.0, 0.0, 0.3379, 1.0]
    """
    bits = checks.whole(bits, "bits", "N-1", low=2, high=8)
    o = checks.number(offset, "offset", "N-1", low=0.5, high=1.0, above=True)
    if o == 1:
        raise SpecError("N-1", "offset must be below 1: the quantile of 1 is infinite")
    h = 2 ** (bits - 1)
    above = ndtri(np.linspace(o, 0.5, h + 1)[:-1])  # (N.2)
    below = -ndtri(np.linspace(o, 0.5, h)[:-1])  # (N.4)
    return np.sort(np.concatenate([above, [0.0], below])) / ndtri(o)


def dynamic_float(*, bits: int) -> F64:
    """Levels of the dynamic 8-bit float that double quantization uses, at any width, ascending.  [N-1a]

        ± 10^(e − b + 2) · (0.1 + 0.9 (j + ½) / 2^e),   e = 0 … b − 2,   j = 0 … 2^e − 1             (N.5)
        0 and 1

    Shapes: → float64 (2^b,), 3 ≤ b ≤ 8. Every decade has twice the levels of the one below; there is no −1.
    Source: Dettmers 2016 and Dettmers et al. 2022 (8-bit optimizers), as in bitsandbytes' signed dynamic map.

    >>> dynamic_float(bits=3).round(4).tolist()
    [-0.775, -0.325, -0.055, 0.0, 0.055, 0.325, 0.775, 1.0]
    """
    bits = checks.whole(bits, "bits", "N-1a", low=3, high=8)
    decades = [10.0 ** (e - bits + 2) * (0.1 + 0.9 * (np.arange(2**e) + 0.5) / 2**e) for e in range(bits - 1)]
    positive = np.concatenate(decades)  # (N.5)
    return np.sort(np.concatenate([-positive, [0.0], positive, [1.0]]))


def block_count(size: int, block_size: int, clause: str) -> int:
    """Blocks of a flattened array: ⌈n / B⌉."""
    return -(-size // checks.whole(block_size, "block_size", clause, low=1))


def table(levels: npt.ArrayLike, clause: str) -> F64:
    """Checked levels (L,), strictly ascending."""
    l = checks.finite(levels, "levels", clause, ndim=1)
    if l.size == 0:
        raise SpecError(clause, "levels must hold at least one level")
    if (np.diff(l) <= 0).any():
        i = int(np.flatnonzero(np.diff(l) <= 0)[0])
        raise SpecError(clause, f"levels must ascend strictly, got {l[i]} before {l[i + 1]} at {i}")
    return l


def spread(scale: npt.ArrayLike, shape: tuple[int, ...], block_size: int, clause: str) -> F64:
    """Scales (⌈n/B⌉,) repeated over the values of their blocks, in the shape of the values."""
    s = checks.finite(scale, "scale", clause, ndim=1)
    n = int(np.prod(shape))
    if (wanted := block_count(n, block_size, clause)) != s.size:
        raise SpecError(clause, f"{n} values in blocks of {block_size} have {wanted} scales, got {s.size}")
    return np.repeat(s, block_size)[:n].reshape(shape)


def looked_up(codes: npt.NDArray[np.int64], l: F64, clause: str) -> F64:
    """l_c, refusing a code without a level."""
    outside = (codes < 0) | (codes >= l.size)
    if outside.any():
        at = tuple(int(i) for i in np.argwhere(outside)[0])
        raise SpecError(clause, f"code {codes[at]} at {at} has no level among {l.size}")
    return np.asarray(l[codes])


def block_scale(x: npt.ArrayLike, /, *, block_size: int = 64) -> F64:
    """Largest magnitude of every block.  [N-2]

        s_j = max |x_i|,   i in block j                                                              (N.6)

    Shapes: x any → (⌈n/B⌉,), n the number of values. Exact. A block of zeros has scale 0.

    >>> block_scale([[1.0, -2.0, 0.5], [-4.0, 0.0, 0.0]], block_size=4).tolist()    # the first block crosses the rows
    [4.0, 0.0]
    """
    a = np.abs(checks.finite(x, "x", "N-2").ravel())
    blocks = block_count(a.size, block_size, "N-2")
    padded = np.zeros(blocks * block_size)
    padded[: a.size] = a
    return np.asarray(padded.reshape(blocks, block_size).max(axis=1, initial=0.0))  # (N.6)


def quantize_blocks(x: npt.ArrayLike, scale: npt.ArrayLike, levels: npt.ArrayLike, /, *, block_size: int = 64) -> I32:
    """Index of the level that is nearest to x / s; an exact midpoint goes to the lower index.  [N-3]

        c_i = argmin_c |x_i / s_⌊i/B⌋ − l_c|,   x / 0 read as 0                                      (N.7)

    Shapes: x any, scale (⌈n/B⌉,) ≥ 0, levels (L,) ascending → int32 of x's shape. Divide: x · (1/s) rounds twice.
    A block of zeros has scale 0; the published code divides by it, LoftQ's gives NaN, and NaN has no nearest level.

    >>> quantize_blocks([0.5, 1.5, -3.0, 0.0], [2.0, 0.0], [-1.0, 0.0, 0.5, 1.0], block_size=3).tolist()
    [1, 2, 0, 1]
    """
    l = table(levels, "N-3")
    a = checks.finite(x, "x", "N-3")
    s = spread(scale, a.shape, block_size, "N-3")
    if (s < 0).any():
        raise SpecError("N-3", f"scale must be >= 0, got {s.min()}")
    with np.errstate(over="ignore"):
        ratio = np.divide(a, s, out=np.zeros_like(a), where=s > 0)
    return nearest_level(np.clip(ratio, l[0], l[-1]), l)  # (N.7)


def dequantize_blocks(
    codes: npt.ArrayLike, scale: npt.ArrayLike, levels: npt.ArrayLike, /, *, block_size: int = 64
) -> F64:
    """Values of codes.  [N-4]  (N.1)

    Shapes: codes any, integers 0 … L − 1, scale (⌈n/B⌉,), levels (L,) → float of the shape of the codes.
    The scale may be of any sign: scales that went through quantize_scale can come back a little below 0.

    >>> dequantize_blocks([[0, 2], [1, 2]], [4.0, 0.5], [-1.0, 0.0, 0.5], block_size=3).tolist()
    [[-4.0, 2.0], [0.0, 0.25]]
    """
    l = table(levels, "N-4")
    q = checks.integers(codes, "codes", "N-4")
    return spread(scale, q.shape, block_size, "N-4") * looked_up(q, l, "N-4")  # (N.1)


def quantize_scale(scale: npt.ArrayLike, levels: npt.ArrayLike, /, *, block_size: int = 256) -> DoubleScale[Array]:
    """Double quantization: the scales themselves, around their mean, in blocks of their own.  [N-5]

        o = mean s,   S = block_scale(s − o),   c = quantize_blocks(s − o, S, levels)                (N.8)

    Shapes: scale (n,), levels (L,) → codes int32 (n,), scale (⌈n/B⌉,), offset (); no scales have offset 0.
    QLoRA uses dynamic_float(bits=8) and B = 256, and takes the codes of the weights with the scales *before* this.
    A scale near 0 among large ones can come back negative: its error is relative to the block.
    Source: QLoRA, section 3, double quantization; bitsandbytes ``compress_statistics``.

    >>> quantize_scale([1.0, 2.0, 6.0], [-1.0, 0.0, 1.0], block_size=3)
    DoubleScale(codes=array([0, 1, 2], dtype=int32), scale=array([3.]), offset=array(3.))
    """
    l = table(levels, "N-5")
    s = checks.finite(scale, "scale", "N-5", ndim=1)
    blocks = block_count(s.size, block_size, "N-5")
    offset = np.asarray(s.mean() if blocks else 0.0)
    around = s - offset
    second = block_scale(around, block_size=block_size)
    return DoubleScale(quantize_blocks(around, second, l, block_size=block_size), second, offset)  # (N.8)


def dequantize_scale(
    codes: npt.ArrayLike,
    scale: npt.ArrayLike,
    offset: npt.ArrayLike,
    levels: npt.ArrayLike,
    /,
    *,
    block_size: int = 256,
) -> F64:
    """Scales of a double quantization: ŝ_i = o + S_⌊i/B⌋ l_{c_i}.  [N-5a]

    Shapes: codes (n,), scale (⌈n/B⌉,), offset (), levels (L,) → float (n,).

    >>> dequantize_scale([0, 1, 2], [3.0], 3.0, [-1.0, 0.0, 1.0], block_size=3).tolist()
    [0.0, 3.0, 6.0]
    """
    l = table(levels, "N-5a")
    q = checks.integers(codes, "codes", "N-5a", ndim=1)
    o = checks.finite(offset, "offset", "N-5a", ndim=0)
    return o + spread(scale, q.shape, block_size, "N-5a") * looked_up(q, l, "N-5a")


def codebook_matmul(
    x: npt.ArrayLike,
    words: npt.ArrayLike,
    scale: npt.ArrayLike,
    levels: npt.ArrayLike,
    /,
    *,
    bits: int,
    block_size: int = 64,
) -> F64:
    """The product of a linear layer with packed codes: y = x Ŵᵀ, Ŵ of (N.1).  [N-6]

    Shapes: x (T, k), words int32 (m, word_count(k)) as ``pack(codes, bits=b)`` makes them, scale (⌈m k/B⌉,),
    levels (2^b,) → (T, m). The weight is what dequantize_blocks gives; nothing is rounded to a narrower format.

    >>> from lowbit.reference import pack
    >>> words = pack([[0, 3], [2, 1]], bits=2)
    >>> codebook_matmul([[1.0, 10.0]], words, [2.0, 4.0], [-1, 0, 0.5, 1], bits=2, block_size=2)
    array([[18.,  2.]])
    """
    bits = checks.whole(bits, "bits", "N-6", low=1, high=8)
    l = table(levels, "N-6")
    if l.size != 2**bits:
        raise SpecError("N-6", f"{bits} bits need {2**bits} levels, got {l.size}")
    a = checks.finite(x, "x", "N-6", ndim=2)
    q = unpack(words, bits=bits, length=a.shape[1])
    return a @ (spread(scale, q.shape, block_size, "N-6") * l[q]).T

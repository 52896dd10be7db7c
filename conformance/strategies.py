"""Inputs on which wrong code differs from right code: ties, dead channels, hard spectra, degenerate groups.

Random Gaussian data cannot test a rounding rule: half-even and half-away differ on 3 of 1.9 million such inputs, and
on a quarter of the dyadic grids drawn here. Elements are drawn one by one as small integers times a unit, so that
Hypothesis can shrink a failing array to a few non-zero entries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.reference.types import IntegerTable, Table

from .compare import gamma, unit_roundoff

__all__ = [
    "BOUNDARY_RANGES",
    "DAMPINGS",
    "EPSILONS",
    "HADAMARD_ORDERS",
    "LARGE_SPECTRA",
    "PUBLISHED_FLOOR",
    "SCALINGS",
    "SCHEMES",
    "SEPARATED",
    "SMOOTHINGS",
    "TOLERANCES",
    "UNITS",
    "AffineInput",
    "Allocation",
    "BinaryInput",
    "BlockInput",
    "BlockProblem",
    "CodedLayer",
    "DoraProblem",
    "FakeQuantInput",
    "GridInput",
    "LargeProblem",
    "LearnedStepInput",
    "PatchProblem",
    "RankProblem",
    "RotationProblem",
    "WeightProblem",
    "activations",
    "affine_inputs",
    "affine_ties",
    "allocations",
    "binary_inputs",
    "binary_weights",
    "block_inputs",
    "block_problems",
    "block_ties",
    "coded_layers",
    "counters",
    "degenerate_groups",
    "dora_problems",
    "dyadic",
    "end_problems",
    "fake_quant_inputs",
    "float_dtypes",
    "grid_inputs",
    "hadamard_inputs",
    "hessians",
    "integer_tables",
    "knots",
    "large_problem",
    "learned_step_inputs",
    "matrices",
    "packed_codes",
    "patch_problems",
    "piecewise_tables",
    "rank_problems",
    "rotation_problems",
    "seeds",
    "sorted_levels",
    "square_matrices",
    "table_inputs",
    "tokens",
    "weight_problems",
]

Array = npt.NDArray[Any]
SCHEMES = ("asymmetric", "symmetric", "symmetric-full", "symmetric-gptq")
UNITS = (1.0, 0.125, 1 / 3, 0.1, 0.0078125, 2.7182818284590451)  # dyadic ones keep arithmetic exact, the others round
DAMPINGS = (0.01, 0.1, 1.0)
SEPARATED = 0.9  # ratio of magnitudes up to which some hundred power steps tell them apart
BOUNDARY_RANGES = (0.005, 0.1, 0.3)  # options of operations, as are the next two; the first is the published one
EPSILONS = (0.0, 0.0, 1e-8, 0.125)  # of a min-max scale
SMOOTHINGS = (0.0, 1e-3, 0.25)  # added to probabilities
PUBLISHED_FLOOR = 1e-8  # of a probability in the map loss
TOLERANCES = (1e-6, 1e-3)  # asked of the certified solve; an option of the operation, not of a comparison


def float_dtypes(*, half: bool = False) -> st.SearchStrategy[str]:
    """Input dtypes of the contract; ``half`` adds float16."""
    return st.sampled_from(["float32", "float64", "float16"] if half else ["float32", "float64"])


def _integers(shape: tuple[int, ...], limit: int) -> st.SearchStrategy[Array]:
    # no fill value: every entry is drawn, or most of a large array would be one repeated number
    return arrays(np.int64, shape, elements=st.integers(-limit, limit), fill=st.nothing())


@st.composite
def dyadic(draw: st.DrawFn, *, dtype: str | None = None, limit: int = 4000, max_dims: int = 3) -> Array:
    """Multiples of 1/8 below ``limit``/8 in absolute value, of any shape: 0-d, zero-size, up to three axes."""
    shape = draw(
        st.one_of(
            st.sampled_from([(), (0,), (3, 0)]),
            st.lists(st.integers(1, 6), min_size=1, max_size=max_dims).map(tuple),
            st.integers(8, 40).map(lambda n: (n,)),
        )
    )
    kind = dtype or draw(float_dtypes(half=True))
    bound = min(limit, 2000) if kind == "float16" else limit  # 11 significand bits hold 2000/8 exactly
    return np.asarray(draw(_integers(shape, bound)) / 8, kind)


@st.composite
def sorted_levels(draw: st.DrawFn) -> Array:
    """1 to 17 strictly ascending multiples of 1/4, exactly representable everywhere."""
    values = draw(st.lists(st.integers(-64, 64), min_size=1, max_size=17, unique=True))
    return np.asarray(sorted(values), np.float64) / 4


@st.composite
def matrices(
    draw: st.DrawFn,
    *,
    rows: tuple[int, int] = (1, 6),
    columns: tuple[int, int] = (1, 12),
    multiple: int = 1,
    dtype: str | None = None,
) -> Array:
    """General or awkward content: huge range over columns, dead columns, zero rows, repeated rows, constants."""
    m = draw(st.integers(*rows))
    k = multiple * draw(st.integers(-(-columns[0] // multiple), columns[1] // multiple))
    values = draw(_integers((m, k), 999)) * draw(st.sampled_from(UNITS))
    match draw(st.sampled_from(["general", "general", "general", "range", "dead", "zero row", "repeated", "constant"])):
        case "range":
            values = values * np.ldexp(1.0, draw(arrays(np.int64, (k,), elements=st.integers(-20, 6))))
        case "dead":
            values[:, draw(arrays(np.bool_, (k,)))] = 0.0
        case "zero row":
            values[draw(st.integers(0, m - 1))] = 0.0
        case "repeated":
            values[:] = values[0]
        case "constant":
            values[:] = values.flat[0] if values.size else 0.0
        case _:
            pass
    return values.astype(dtype or draw(float_dtypes()))


class FakeQuantInput(NamedTuple):
    """Argument of a fake quantizer, and where its statistics come from."""

    x: Array
    options: dict[str, Any]


@st.composite
def fake_quant_inputs(draw: st.DrawFn) -> FakeQuantInput:
    """Two or three axes, every sharing of statistics, clips that every format holds exactly."""
    x = np.clip(draw(matrices(columns=(1, 12))), -6e4, 6e4).astype(draw(float_dtypes(half=True)))
    if x.shape[1] % 2 == 0 and draw(st.booleans()):
        x = x.reshape(len(x), 2, -1)
    options = {
        "granularity": draw(st.sampled_from(["tensor", "row", "matrix"])),
        "clip": draw(st.sampled_from([None, None, 2.5, 0.25])),
    }
    return FakeQuantInput(x, options)


class LearnedStepInput(NamedTuple):
    """Arguments of the operations with a learned step."""

    x: Array
    grad: Array  # the shape of x
    step: Array
    offset: Array | None
    options: dict[str, Any]

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        """Arguments of the forward pass."""
        return self.x, self.step, self.offset


@st.composite
def learned_step_inputs(draw: st.DrawFn) -> LearnedStepInput:
    """Values inside the range and far outside it; one step, or one per index of an axis; with and without a floor."""
    dtype = draw(float_dtypes(half=True))
    x = np.clip(draw(matrices(rows=(1, 4), columns=(1, 12))), -6e4, 6e4).astype(dtype)
    if x.shape[1] % 2 == 0 and draw(st.booleans()):
        x = x.reshape(len(x), 2, -1)
    axis = draw(st.sampled_from([None, None, *range(-x.ndim, x.ndim)]))
    n = 1 if axis is None else x.shape[axis]
    numbers = arrays(np.int64, (n,), elements=st.integers(1, 99), fill=st.nothing())
    unit = draw(st.sampled_from([1 / 8, 1 / 3, 4.0]))
    step = (draw(numbers) * unit).astype(dtype)
    offset = ((draw(numbers) - 50) * unit).astype(dtype) if draw(st.booleans()) else None
    signed = draw(st.booleans())
    options = {
        "bits": draw(st.integers(2 if signed else 1, 8)),
        "signed": signed,
        "axis": axis,
        "epsilon": draw(st.sampled_from([0.0, 0.0, 1e-5, 2.0])),
    }
    grad = np.asarray(draw(_integers(x.shape, 99)) / 32, dtype)
    return LearnedStepInput(x, grad, step, offset, options)


class GridInput(NamedTuple):
    """Arguments of ``fit_grid``."""

    x: Array
    options: dict[str, Any]


@st.composite
def grid_inputs(draw: st.DrawFn, *, schemes: tuple[str, ...] = SCHEMES, half: bool = True) -> GridInput:
    """An array with every way to group it."""
    scheme = draw(st.sampled_from(schemes))
    granularity = draw(st.sampled_from(["group", "row", "token", "tensor"]))
    dtype = draw(float_dtypes(half=half))
    x = draw(matrices(columns=(2, 12), multiple=2))
    x = np.clip(x, -6e4, 6e4).astype(dtype)
    options: dict[str, Any] = {
        "bits": draw(st.integers(1 if scheme == "asymmetric" else 2, 8)),
        "scheme": scheme,
        "granularity": granularity,
    }
    if granularity == "group":
        divisors = [g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0]
        options["group_size"] = draw(st.sampled_from(divisors))
    elif granularity in ("token", "tensor") and draw(st.booleans()):
        x = x.reshape(x.shape[0], 2, -1)  # three axes: only the last one is grouped
    return GridInput(x, options)


@st.composite
def degenerate_groups(draw: st.DrawFn) -> Array:
    """Rows that are all zero, constant, or ordinary, side by side; (m, k) float32 or float64."""
    k = draw(st.integers(1, 8))
    kinds = draw(st.lists(st.sampled_from(["zero", "constant", "ordinary"]), min_size=1, max_size=5))
    rows = []
    for kind in kinds:
        row = draw(_integers((k,), 99)) / 8
        rows.append(row * 0 if kind == "zero" else np.full(k, row[0]) if kind == "constant" else row)
    return np.asarray(rows).astype(draw(float_dtypes(half=True)))


class AffineInput(NamedTuple):
    """Arguments of ``quantize``."""

    x: Array  # (m, k)
    scale: Array  # (m, G)
    zero_point: Array  # int32, (m, G)
    bits: int
    scheme: str


@st.composite
def _affine_shape(draw: st.DrawFn) -> tuple[int, int, int, int, str, str]:
    m, groups, width = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    scheme = draw(st.sampled_from(SCHEMES))
    bits = draw(st.integers(1 if scheme == "asymmetric" else 2, 8))
    return m, groups, width, bits, scheme, draw(float_dtypes())


def _zero_points(draw: st.DrawFn, shape: tuple[int, int], bits: int, scheme: str) -> Array:
    top = 2**bits - 1
    values = draw(arrays(np.int64, shape, elements=st.integers(0, top))) if scheme == "asymmetric" else np.zeros(shape)
    return np.asarray(values, np.int32)


@st.composite
def affine_ties(draw: st.DrawFn) -> AffineInput:
    """x / s is exactly a multiple of 1/2, with s an odd integer times a power of two.

    x = (2n + 1)·s/2 is representable, so the quotient is exact in every IEEE format and only the rounding rule decides;
    the product x·(1/s) is not exact, and misses the tie.
    """
    m, groups, width, bits, scheme, dtype = draw(_affine_shape())
    odd = 2 * draw(arrays(np.int64, (m, groups), elements=st.integers(0, 60))) + 1
    scale = odd * np.ldexp(1.0, draw(st.integers(-12, 4)))
    halves = draw(_integers((m, groups * width), 2 ** (bits + 1) + 3))
    x = halves / 2 * np.repeat(scale, width, axis=1)
    zero = _zero_points(draw, (m, groups), bits, scheme)
    return AffineInput(x.astype(dtype), scale.astype(dtype), zero, bits, scheme)


@st.composite
def affine_inputs(draw: st.DrawFn) -> AffineInput:
    """General x and scales; a third of the entries are pushed next to a tie by one unit in the last place or two."""
    m, groups, width, bits, scheme, dtype = draw(_affine_shape())
    scale = ((1 + np.abs(draw(_integers((m, groups), 999)))) / 701).astype(dtype)
    wide = np.repeat(scale, width, axis=1)
    general = (draw(_integers((m, groups * width), 999)) / 999 * 2**bits * wide).astype(dtype)
    halves = draw(_integers((m, groups * width), 2**bits))
    close = ((halves + 0.5) * wide).astype(dtype)
    nudge = draw(arrays(np.int64, close.shape, elements=st.integers(-2, 2)))
    close = (close + nudge * np.spacing(close)).astype(dtype)
    x = np.where(draw(arrays(np.bool_, close.shape)), close, general)
    return AffineInput(x, scale, _zero_points(draw, (m, groups), bits, scheme), bits, scheme)


class BlockInput(NamedTuple):
    """Arguments of ``quantize_blocks``."""

    x: Array  # any shape
    scale: Array  # (blocks,)
    levels: Array  # (L,)
    block_size: int


def block_count(size: int, block_size: int) -> int:
    """Blocks of a flattened array, the short one at the end included."""
    return -(-size // block_size)


@st.composite
def _block_shape(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
    size = int(np.prod(shape))
    return shape, draw(st.one_of(st.integers(1, 7), st.sampled_from([size, size + 3])))


@st.composite
def block_ties(draw: st.DrawFn) -> BlockInput:
    """x / s is exactly a level, a midpoint, or 1/8 beside one: s is an odd integer times a power of two."""
    shape, block_size = draw(_block_shape())
    levels = draw(sorted_levels())
    points = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2])
    points = np.unique(np.concatenate([points, points - 0.125, points + 0.125]))
    size = int(np.prod(shape))
    scale = (2 * draw(_integers((block_count(size, block_size),), 60)) + 1) * np.ldexp(1.0, draw(st.integers(-12, 4)))
    scale = np.abs(scale)
    picked = points[draw(arrays(np.int64, (size,), elements=st.integers(0, points.size - 1), fill=st.nothing()))]
    x = (picked * np.repeat(scale, block_size)[:size]).reshape(shape)
    dtype = draw(float_dtypes())
    return BlockInput(x.astype(dtype), scale.astype(dtype), levels.astype(dtype), block_size)


@st.composite
def block_inputs(draw: st.DrawFn) -> BlockInput:
    """General values, a third of them next to a midpoint; levels in the dtype of x or in float64; some scales 0."""
    shape, block_size = draw(_block_shape())
    dtype = draw(float_dtypes(half=True))
    levels = draw(sorted_levels()) / draw(st.sampled_from([7, 16, 23]))
    levels = levels.astype(draw(st.sampled_from(["float64", "float32"])))
    size = int(np.prod(shape))
    scale = np.abs(draw(_integers((block_count(size, block_size),), 999))) / 701
    scale = scale.astype("float32" if dtype == "float16" else dtype)
    wide = np.repeat(scale, block_size)[:size].astype(np.float64)
    general = draw(_integers((size,), 999)) / 500 * wide
    middles = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2])
    near = middles[draw(arrays(np.int64, (size,), elements=st.integers(0, middles.size - 1), fill=st.nothing()))]
    close = (near * wide).astype(dtype)
    close = close + draw(arrays(np.int64, (size,), elements=st.integers(-2, 2))) * np.spacing(close)
    x = np.where(draw(arrays(np.bool_, (size,))), close, general)
    return BlockInput(x.astype(dtype).reshape(shape), scale, levels, block_size)


class CodedLayer(NamedTuple):
    """A binary-coded layer, something of its weight's shape, and inputs."""

    codes: Array  # int32, (m, k)
    scale: Array  # (m, G, q)
    weight: Array  # (m, k), a weight or a gradient
    tokens: Array  # (T, k)
    bits: int
    group_size: int | None


@st.composite
def coded_layers(draw: st.DrawFn, *, half: bool = False) -> CodedLayer:
    """Codes with planes that coincide or part, scales of either sign and in any order, integers throughout."""
    dtype = draw(float_dtypes(half=half))
    m, groups, width, bits = (draw(st.integers(1, n)) for n in (4, 3, 6, 3))
    k = groups * width
    codes = draw(arrays(np.int32, (m, k), elements=st.integers(0, 2**bits - 1), fill=st.nothing()))
    match draw(st.sampled_from(["general", "general", "constant row", "equal planes"])):
        case "constant row":
            codes[0] = codes[0, 0]
        case "equal planes":
            codes = np.where(codes & 1, 2**bits - 1, 0).astype(np.int32)
        case _:
            pass
    scale = draw(_integers((m, groups, bits), 40)) / 8
    weight = draw(_integers((m, k), 99)) * draw(st.sampled_from(UNITS))
    tokens = draw(_integers((draw(st.integers(1, 2 * k + 4)), k), 9))
    if draw(st.booleans()):
        tokens[:, draw(arrays(np.bool_, (k,)))] = 0
    size = width if groups > 1 or draw(st.booleans()) else None
    return CodedLayer(codes, scale.astype(dtype), weight.astype(dtype), tokens.astype(dtype), bits, size)


class Allocation(NamedTuple):
    """Errors and sizes of a few blocks at 1 … Q bits, and a budget."""

    errors: Array  # (n, Q)
    sizes: Array  # int32, (n, Q)
    budget: int


@st.composite
def allocations(draw: st.DrawFn, *, convex: bool = False, whole: bool = False) -> Allocation:
    """So few blocks that every allocation can be tried. ``convex``: falling gains, steps of one size for all blocks.

    ``whole``: integers, so that sums and comparisons of slopes are exact or far apart.
    """
    dtype = draw(float_dtypes())
    n, widths = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    gains = draw(arrays(np.int64, (n, widths), elements=st.integers(0 if convex else -9, 40), fill=st.nothing()))
    if convex:
        gains = np.sort(gains, axis=1)
        sizes = np.tile(draw(st.integers(1, 9)) * np.arange(1, widths + 1), (n, 1))
    else:
        sizes = np.cumsum(draw(arrays(np.int64, (n, widths), elements=st.integers(1, 9), fill=st.nothing())), axis=1)
    errors = np.cumsum(gains, axis=1)[:, ::-1] * (1.0 if whole else draw(st.sampled_from(UNITS)))
    low, high = int(sizes[:, 0].sum()), int(sizes[:, -1].sum())
    return Allocation(errors.astype(dtype), sizes.astype(np.int32), draw(st.integers(low, high + 2)))


@st.composite
def packed_codes(draw: st.DrawFn) -> tuple[Array, int]:
    """Unsigned codes (n, k) int32 and their width; k straddles word borders."""
    bits = draw(st.integers(1, 8))
    n, k = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    return draw(arrays(np.int32, (n, k), elements=st.integers(0, 2**bits - 1), fill=st.nothing())), bits


class BinaryInput(NamedTuple):
    """A binary code and what goes with it."""

    codes: Array  # int32 (m, k)
    scale: Array  # (m, G, q)
    offset: Array | None  # (m, G)
    w: Array  # (m, k), on midpoints of levels now and then
    x: Array  # (t, k)


@st.composite
def binary_inputs(draw: st.DrawFn, *, dyadic: bool = False) -> BinaryInput:
    """Codes of 1 to 4 planes with scales of any sign, equal and zero ones among them, in groups of any length.

    With ``dyadic`` scales are multiples of 1/4 and weights of 1/8, so that levels and midpoints are exact.
    """
    m, groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    bits, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dtype = draw(float_dtypes())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))  # long rows: shrinking them would say nothing
    unit = 0.25 if dyadic else draw(st.sampled_from(UNITS))
    scale = draw(_integers((m, groups, bits), 9)) * unit
    offset = draw(_integers((m, groups), 9)) * unit if draw(st.booleans()) else None
    codes = random.integers(0, 2**bits, (m, groups * size)).astype(np.int32)
    w = random.integers(-80, 81, (m, groups * size)) * (unit / 2)
    x = random.integers(-99, 100, (tokens, groups * size)) * (1.0 if dyadic else draw(st.sampled_from(UNITS)))
    shift = None if offset is None else offset.astype(dtype)
    return BinaryInput(codes, scale.astype(dtype), shift, w.astype(dtype), x.astype(dtype))


@st.composite
def binary_weights(draw: st.DrawFn) -> tuple[Array, int | None]:
    """Weights and a group size: general, sparse, constant, ±c, zero, of few values, and of very different sizes."""
    m, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 12))
    w = (draw(_integers((m, groups * size), 999)) * draw(st.sampled_from(UNITS))).astype(np.float64)
    match draw(
        st.sampled_from(["general", "general", "general", "sparse", "constant", "signs", "zero", "few", "tiny"])
    ):
        case "sparse":
            w[:, 1:] = 0.0
        case "constant":
            w[:] = w[:, :1]
        case "signs":
            w[:] = np.where(w < 0, -1.0, 1.0) * np.abs(w[:, :1])
        case "zero":
            w[0] = 0.0
        case "few":
            w[:] = np.sign(w) * 3 + (np.abs(w) > 400)
        case "tiny":
            w = np.ldexp(w, -60)
        case _:
            pass
    whole = groups == 1 and draw(st.booleans())
    return w.astype(draw(float_dtypes(half=False))), None if whole else size


@st.composite
def activations(draw: st.DrawFn, *, features: tuple[int, int] = (1, 8), half: bool = False) -> Array:
    """Tokens (T, k): outlier features, dead features, few tokens."""
    k, tokens = draw(st.integers(*features)), draw(st.integers(1, 24))
    x = draw(_integers((tokens, k), 99)) * draw(st.sampled_from(UNITS))
    if draw(st.booleans()):
        x = x * np.ldexp(1.0, draw(arrays(np.int64, (k,), elements=st.sampled_from([-6, 0, 0, 5]))))
    if draw(st.booleans()):
        x[:, draw(arrays(np.bool_, (k,)))] = 0.0
    return np.clip(x, -6e4, 6e4).astype(draw(float_dtypes(half=half)))


def _symmetric(x: Array, dtype: str) -> Array:
    gram = (x.T @ x).astype(dtype)
    return np.asarray(np.triu(gram) + np.triu(gram, 1).T)


@st.composite
def hessians(draw: st.DrawFn, k: int, dtype: str) -> Array:
    """XᵀX (k, k), exactly symmetric: well-conditioned, rank-deficient, dead columns, diagonal, equal diagonal."""
    kind = draw(st.sampled_from(["good", "good", "few tokens", "dead", "diagonal", "equal diagonal"]))
    if kind == "diagonal":
        return np.diag(draw(arrays(np.int64, (k,), elements=st.integers(1, 9), fill=st.nothing()))).astype(dtype)
    tokens = draw(st.integers(1, k)) if kind == "few tokens" else 2 * k + 4
    x = draw(_integers((tokens, k), 9)).astype(np.float64)
    if kind == "dead":
        x[:, draw(arrays(np.bool_, (k,)))] = 0.0
    h = _symmetric(x, "float64")
    if kind in ("good", "dead", "equal diagonal"):  # a ridge on the live columns bounds the condition number
        live = np.diag(h) > 0
        h[live, live] += 30 * k
    if kind == "equal diagonal":
        np.fill_diagonal(h, np.max(np.diag(h)))
    return h.astype(dtype)


class WeightProblem(NamedTuple):
    """A weight, its Hessian, and the damping."""

    w: Array  # (m, k)
    h: Array  # (k, k)
    damping: float


@st.composite
def weight_problems(draw: st.DrawFn, *, multiple: int = 4, largest: int = 12) -> WeightProblem:
    """Inputs of GPTQ and SparseGPT; k is a multiple of ``multiple``."""
    dtype = draw(float_dtypes())
    m, k = draw(st.integers(1, 4)), multiple * draw(st.integers(1, largest // multiple))
    w = draw(_integers((m, k), 999)) / draw(st.sampled_from([999.0, 100.0, 64.0]))
    if draw(st.booleans()):
        w[:, draw(st.integers(0, k - 1))] *= 0.0
    return WeightProblem(w.astype(dtype), draw(hessians(k, dtype)), draw(st.sampled_from(DAMPINGS)))


class PatchProblem(NamedTuple):
    """A compression error, a second moment, and a rank."""

    d: Array  # (m, k)
    c: Array  # (k, k), symmetric positive semidefinite
    rank: int


@st.composite
def patch_problems(draw: st.DrawFn, *, largest: int = 10, singular: bool = True) -> PatchProblem:
    """Errors and moments whose spectra are general, rank-deficient, of huge range, or repeated across the cut."""
    dtype = draw(float_dtypes())
    m, k = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    rank = draw(st.integers(1, min(m, k)))
    spectra = ["general", "general", "repeated", "range"] + (["few tokens", "dead", "low rank"] if singular else [])
    kind = draw(st.sampled_from(spectra))
    if kind == "repeated":  # a permutation has one singular value, min(m, k) times: the cut always splits a tie
        size = max(m, k)
        d = np.eye(size)[draw(st.permutations(range(size)))][:m, :k] * draw(st.sampled_from(UNITS))
        return PatchProblem(d.astype(dtype), (4 * np.eye(k)).astype(dtype), rank)
    d = draw(_integers((m, k), 99)) * draw(st.sampled_from(UNITS))
    if kind == "low rank":
        inner = draw(st.integers(1, min(m, k)))
        d = (draw(_integers((m, inner), 9)) @ draw(_integers((inner, k), 9))).astype(np.float64)
    tokens = draw(st.integers(1, k)) if kind == "few tokens" else 2 * k + 2
    x = draw(_integers((tokens, k), 9)).astype(np.float64)
    if kind == "range":
        x = x * np.ldexp(1.0, -np.arange(k))
    if kind == "dead":
        x[:, draw(arrays(np.bool_, (k,)))] = 0.0
    c = x.T @ x
    if not singular:
        c += np.diag(np.maximum(np.diag(c), 1.0))
    return PatchProblem(d.astype(dtype), _symmetric_from(c, dtype), rank)


def _symmetric_from(c: Array, dtype: str) -> Array:
    c = c.astype(dtype)
    return np.asarray(np.triu(c) + np.triu(c, 1).T)


SCALINGS = (1.0, 2.0, 0.5, -1.0, 2.3094010767585034)  # the last is 4 / √3, an rsLoRA's


class DoraProblem(NamedTuple):
    """A DoRA layer in layout "linear"."""

    w: Array  # (m, k)
    b: Array  # (m, r)
    a: Array  # (r, k)
    magnitude: Array  # (m,)
    scaling: float


@st.composite
def dora_problems(
    draw: st.DrawFn, *, cancelling: bool = True, zero_rows: bool = False, half: bool = False
) -> DoraProblem:
    """Layers as they are at the start, later on, with negative and zero magnitudes, of rank 0.

    With ``cancelling`` also such where B A has almost erased W; with ``zero_rows`` also rows without direction.
    """
    dtype = draw(float_dtypes(half=half))
    m, k, r = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(0, 3))
    unit, scaling = draw(st.sampled_from(UNITS)), draw(st.sampled_from(SCALINGS))
    w = draw(_integers((m, k), 999)) * unit
    b, a = draw(_integers((m, r), 99)) * unit, draw(_integers((r, k), 99)) * draw(st.sampled_from([1.0, 0.1]))
    magnitude = draw(_integers((m,), 99)) * unit
    kinds = ["general", "general", "start", "range", "dead columns"] + (["zero row"] if zero_rows else [])
    match draw(st.sampled_from([*kinds, "cancelling", "cancelling"] if cancelling else kinds)):
        case "start":
            b, magnitude = 0 * b, np.linalg.norm(w, axis=1)
        case "zero row":
            i = draw(st.integers(0, m - 1))
            w[i], b[i] = 0.0, 0.0
        case "range":
            shift = np.ldexp(1.0, draw(arrays(np.int64, (m, 1), elements=st.integers(-20, 4))))
            w, b = w * shift, b * shift
        case "dead columns":
            dead = draw(arrays(np.bool_, (k,)))
            w[:, dead], a[:, dead] = 0.0, 0.0
        case "cancelling":
            b, a = b.astype(dtype), a.astype(dtype)
            w = w * draw(st.sampled_from([0.0, 1e-3, 1e-5])) - scaling * (b.astype(np.float64) @ a.astype(np.float64))
        case _:
            pass
    limit = 6e4 if dtype == "float16" else np.inf
    w, b, a = (np.clip(x, -limit, limit).astype(dtype) for x in (w, b, a))
    if not zero_rows:  # nor such whose direction is rounding, in the precision of the least precise backend
        update = scaling * (b.astype(np.float64) @ a.astype(np.float64))
        bulk = np.linalg.norm(np.abs(w) + abs(scaling) * np.abs(b.astype(np.float64)) @ np.abs(a), axis=1)
        lost = np.linalg.norm(w + update, axis=1) <= gamma(64, unit_roundoff("float32")) * bulk
        w[lost], b[lost] = unit, 0.0
    return DoraProblem(w, b, a, np.clip(magnitude, -limit, limit).astype(dtype), scaling)


LARGE_SPECTRA = ("equal blocks", "few directions", "scaled blocks")


class LargeProblem(NamedTuple):
    """A problem whose answer is known from small ones: D and C are block diagonal under a permutation."""

    problem: PatchProblem
    blocks: list[tuple[Array, Array]]  # float64 (d, c) of every block, the same numbers as in the whole


def large_problem(spectrum: str, dtype: str = "float32") -> LargeProblem:
    """A fixed problem of 1040 × 1027, where a solver has reason to iterate, of 13 blocks of 80 × 79.

    equal blocks: every value 13 times, and the cut between equal ones. few directions: fewer than the rank asked for.
    scaled blocks: powers of two apart, a long decay.
    """
    random = np.random.default_rng(20240229)
    count, m, k, rank = 13, 80, 79, 9
    d0 = (random.standard_normal((m, 40)) / np.arange(1, 41) ** 2) @ random.standard_normal((40, k))
    if spectrum == "few directions":
        d0 = random.integers(-3, 4, (m, 3)).astype(np.float64) @ random.integers(-3, 4, (3, k))
    tokens = random.standard_normal((2 * k, k)) * np.ldexp(1.0, random.integers(-3, 2, k))
    d0, c0 = d0.astype(dtype), _symmetric_from(tokens.T @ tokens, dtype)
    factors = {
        "equal blocks": np.ones(count),
        "few directions": (np.arange(count) < 2).astype(np.float64),
        "scaled blocks": np.ldexp(1.0, -np.arange(count)),
    }[spectrum]
    d, c = np.zeros((count * m, count * k), dtype), np.zeros((count * k, count * k), dtype)
    for i, factor in enumerate(factors):  # powers of two: exact in every format
        d[i * m : (i + 1) * m, i * k : (i + 1) * k] = factor * d0
        c[i * k : (i + 1) * k, i * k : (i + 1) * k] = c0
    rows, columns = random.permutation(count * m), random.permutation(count * k)
    whole = PatchProblem(d[np.ix_(rows, columns)], c[np.ix_(columns, columns)], rank)
    return LargeProblem(whole, [(factor * d0.astype(np.float64), c0.astype(np.float64)) for factor in factors])


WORDS = st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1), st.sampled_from([2**31 - 1, 2**31, 2**32 - 1]))


def seeds() -> st.SearchStrategy[int]:
    """Keys of 64 bits, those with a high word among them."""
    return st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1), st.sampled_from([2**32, 2**63, 2**64 - 1]))


@st.composite
def counters(draw: st.DrawFn) -> Array:
    """Addresses (..., 4), int64 or, where they fit, int32; words of all sizes, zero-size arrays too."""
    shape = (*draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,)])), 4)
    values = draw(arrays(np.int64, shape, elements=WORDS, fill=st.nothing()))
    fits = values.size == 0 or int(values.max()) < 2**31
    return values.astype(np.int32) if fits and draw(st.booleans()) else values


HADAMARD_ORDERS = (
    1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108,
    112, 116, 120, 124, 128, 144, 148, 156, 168, 172, 184, 244, 256, 260, 340, 344,
)  # fmt: skip
"""Every construction: Sylvester, both of Paley over prime fields and GF(9), GF(25), GF(27), GF(121), GF(169), GF(343),
four circulants, and products."""


@st.composite
def hadamard_inputs(draw: st.DrawFn) -> tuple[Array, int | None]:
    """Tokens whose width has a matrix, or is a few blocks of one; block size or None."""
    size = draw(st.sampled_from([1, 2, 4, 8, 12, 16, 20, 28, 32, 36, 48, 64, 80, 96, 128, 144, 192, 256, 288, 512]))
    blocks = draw(st.sampled_from([None, None, 1, 3]))
    shape = (*draw(st.sampled_from([(), (1,), (3,), (2, 5)])), size * (blocks or 1))
    seed, unit = draw(st.integers(0, 2**16)), draw(st.sampled_from(UNITS))
    x = np.random.default_rng(seed).integers(-99, 100, shape) * unit
    if draw(st.booleans()):  # an outlier feature
        x[..., draw(st.integers(0, shape[-1] - 1))] *= 512
    return np.clip(x, -6e4, 6e4).astype(draw(float_dtypes(half=True))), None if blocks is None else size


@st.composite
def table_inputs(draw: st.DrawFn) -> tuple[Array, Array]:
    """Tokens and a table with permuted, negated rows and columns: in general not symmetric."""
    from lowbit import reference

    order = draw(st.sampled_from([1, 2, 4, 12, 20, 28]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    table = reference.hadamard_matrix(order=order)[random.permutation(order)][:, random.permutation(order)]
    table = table * random.choice([-1, 1], order) * random.choice([-1, 1], (order, 1))
    n = order * 2 ** draw(st.integers(0, 6))
    dtype = draw(float_dtypes(half=True))
    x = (random.integers(-99, 100, (draw(st.integers(1, 6)), n)) / 8).astype(dtype)
    return x, table.astype(dtype)


@st.composite
def square_matrices(draw: st.DrawFn) -> Array:
    """(n, n): general, negative diagonal, singular, of huge range over columns."""
    n = draw(st.integers(1, 9))
    z = draw(_integers((n, n), 99)) * draw(st.sampled_from(UNITS))
    kind = draw(st.sampled_from(["general", "general", "negative", "singular", "range"]))
    if kind == "negative":
        z = z - 300 * np.eye(n)
    elif kind == "singular":
        z[:, -1] = z[:, 0]
    elif kind == "range":
        z = z * np.ldexp(1.0, draw(arrays(np.int64, (n,), elements=st.integers(-12, 6))))
    return z.astype(draw(float_dtypes()))


class RotationProblem(NamedTuple):
    """A weight whose inputs are rotated in blocks."""

    w: Array  # (m, k)
    q: Array  # (d, d) or (b, d, d)
    repeats: int


def _orthogonal(draw: st.DrawFn, *shape: int) -> Array:
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    return np.linalg.qr(random.standard_normal(shape))[0]


@st.composite
def rotation_problems(draw: st.DrawFn) -> RotationProblem:
    """One rotation of the whole axis, one for every block, or one per block with repeats; w may be a half."""
    d, blocks, repeats = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    q = _orthogonal(draw, d, d) if draw(st.booleans()) else _orthogonal(draw, blocks, d, d)
    w = draw(_integers((draw(st.integers(1, 4)), d * blocks * repeats), 999)) * draw(st.sampled_from(UNITS))
    w = np.clip(w, -6e4, 6e4).astype(draw(float_dtypes(half=True)))
    return RotationProblem(w, q.astype(draw(float_dtypes())), repeats)


class BlockProblem(NamedTuple):
    """A decoder block and its rotations."""

    block: Any  # DecoderBlock of arrays
    r1: Array
    r2: Array | None


@st.composite
def block_problems(draw: st.DrawFn) -> BlockProblem:
    """Grouped queries, biases or none, one R2 or one per key-value head or none."""
    from lowbit.reference.types import DecoderBlock

    kv, share, width = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    d, f = draw(st.integers(2, 6)), draw(st.sampled_from([1, 2, 4, 8, 12]))
    dtype = draw(float_dtypes())
    random = np.random.default_rng(draw(st.integers(0, 2**16)))

    def weight(*shape: int) -> Array:
        return (random.integers(-99, 100, shape) / 37).astype(dtype)

    values, queries = kv * width, kv * share * width
    biases = (weight(values), weight(d), weight(d)) if draw(st.booleans()) else (None, None, None)
    block: Any = DecoderBlock(
        weight(d), weight(queries, d), weight(values, d), weight(values, d), weight(d, queries), weight(d),
        weight(f, d), weight(f, d), weight(d, f), *biases,
    )  # fmt: skip
    r2 = [None, _orthogonal(draw, width, width), _orthogonal(draw, kv, width, width)][draw(st.integers(0, 2))]
    return BlockProblem(block, _orthogonal(draw, d, d).astype(dtype), None if r2 is None else r2.astype(dtype))


@st.composite
def end_problems(draw: st.DrawFn) -> tuple[Array, Array, Array | None, Array]:
    """Embedding, gain, head (None: tied), R1; means of embedding rows that are far from 0."""
    d, words = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    dtype = draw(float_dtypes())
    embedding = (draw(_integers((words, d), 99)) + 50) / 37
    gain = draw(_integers((d,), 99)) / 41
    head = (draw(_integers((words, d), 99)) / 53).astype(dtype) if draw(st.booleans()) else None
    return embedding.astype(dtype), gain.astype(dtype), head, _orthogonal(draw, d, d).astype(dtype)


@st.composite
def tokens(draw: st.DrawFn) -> Array:
    """Activations (T, k): one-hot, flat, constant, all-zero and general tokens, outlier features."""
    k = draw(st.integers(1, 12))
    rows = []
    for kind in draw(
        st.lists(st.sampled_from(["general", "general", "hot", "flat", "level", "zero"]), min_size=1, max_size=6)
    ):
        row = draw(_integers((k,), 99)) / 37
        if kind == "hot":
            row = np.where(np.arange(k) == draw(st.integers(0, k - 1)), 7.0, 0.0)
        elif kind == "flat":
            row = np.where(row < 0, -0.1, 0.1)
        elif kind in ("level", "zero"):
            row = np.full(k, 0.1 if kind == "level" else 0.0)
        rows.append(row)
    x = np.array(rows)
    x[:, 0] *= draw(st.sampled_from([1.0, 1.0, 64.0]))
    return x.astype(draw(float_dtypes()))


class RankProblem(NamedTuple):
    """A market for ranks."""

    spectra: Array  # (J, R), descending rows
    importance: Array  # (J,)
    cost: Array  # int32, (J,)
    low: Array  # int32, (J,)
    high: Array  # int32, (J,)
    budget: int  # covers the smallest ranks
    multiple: int


@st.composite
def rank_problems(draw: st.DrawFn, *, ties: bool, modules: int = 6, values: int = 8) -> RankProblem:
    """Few modules with small spectra; every budget from the smallest ranks to all of them and beyond.

    ``ties`` draws small integers and powers of two: gains, shares and their quotients by costs are then exact, or as
    far apart as fractions of small integers are, and equal ones are common. Otherwise values are general, over a range
    of sizes, with modules that repeat, vanish, or have a low rank.
    """
    dtype = draw(float_dtypes())
    J = draw(st.sampled_from([1, 2, *range(2, modules + 1), modules]))
    R, μ = draw(st.sampled_from([1, 3, *range(4, values + 1), values])), draw(st.sampled_from([1, 1, 2, 3]))
    spectra = np.abs(draw(_integers((J, R), 5 if ties else 999))).astype(np.float64)
    if not ties:
        spectra *= (
            np.ldexp(1.0, draw(arrays(np.int64, (J, 1), elements=st.sampled_from([0, 0, 0, 0, 0, 1, -9, 9])))) / 7
        )
        if draw(st.booleans()):
            spectra *= np.ldexp(1.0, -2 * np.arange(R))
    spectra = -np.sort(-spectra.astype(dtype), axis=1)
    if draw(st.booleans()):
        spectra[draw(st.integers(0, J - 1))] = spectra[0]
    if draw(st.booleans()):
        spectra[draw(st.integers(0, J - 1)), draw(st.integers(0, R - 1)) :] = 0.0
    if ties:
        importance = draw(arrays(np.float64, (J,), elements=st.sampled_from([1.0, 1.0, 2.0, 0.5, 0.0])))
    else:
        importance = draw(st.sampled_from([np.ones(J), np.abs(draw(_integers((J,), 99))) / 9]))
    dear = draw(st.sampled_from([2, 9, 30000]))
    cost = draw(arrays(np.int64, (J,), elements=st.integers(1, 9 if ties else dear), fill=st.nothing()))
    span = draw(arrays(np.int64, (2, J), elements=st.integers(0, R // μ), fill=st.nothing()))
    first, last = np.minimum(*span), np.maximum(*span)
    if draw(st.sampled_from([True, True, False])):
        first, last = first * 0, last * 0 + R // μ
    # bounds are not multiples themselves: the lower one is met from above, the upper one from below
    low = np.maximum(first * μ - draw(st.integers(0, μ - 1)), 0)
    high = np.minimum(last * μ + draw(st.integers(0, μ - 1)), R)
    least, most = int(cost @ first) * μ, int(cost @ last) * μ
    budget = least + (most - least) * draw(st.integers(0, 16)) // 16 + draw(st.integers(0, 3))
    cost, low, high = (np.asarray(x, np.int32) for x in (cost, low, high))
    return RankProblem(spectra, importance.astype(dtype), cost, low, high, budget, μ)


# -- look-up tables ----------------------------------------------------------------------------------------------------


@st.composite
def knots(draw: st.DrawFn, *, most: int = 9) -> Array:
    """2 to 10 ascending numbers, some equal: multiples of a unit that is dyadic or not."""
    count = draw(st.integers(2, most + 1))
    values = np.sort(draw(arrays(np.int64, (count,), elements=st.integers(-64, 64), fill=st.nothing())))
    return np.asarray(values * draw(st.sampled_from(UNITS)))


@st.composite
def piecewise_tables(draw: st.DrawFn, *, unit: float | None = None) -> Table[Array]:
    """Tables of 1 to 9 pieces that need not meet, breakpoints sometimes equal; coefficients are multiples of a unit."""
    p = draw(knots()) if unit is None else draw(knots()) * unit
    inner = np.asarray(p[1:-1])
    step = draw(st.sampled_from(UNITS)) if unit is None else unit
    k, b = (draw(_integers((len(inner) + 1,), limit)) * step for limit in (300, 999))
    return Table(inner, np.asarray(k, np.float64), np.asarray(b, np.float64))


@st.composite
def integer_tables(draw: st.DrawFn) -> IntegerTable[Array]:
    """Integer tables of 1 to 9 pieces for 8-bit codes; breakpoints lie among the codes, at their ends and beyond."""
    n = draw(st.integers(1, 9))
    edges = st.one_of(st.integers(-140, 140), st.sampled_from([-129, -128, 0, 127, 128]))
    p = np.sort(draw(arrays(np.int32, (n - 1,), elements=edges, fill=st.nothing())))
    k, b = (draw(_integers((n,), limit)).astype(np.int32) for limit in (300, 30000))
    return IntegerTable(p, k, b, draw(st.integers(0, 7)), draw(st.integers(0, 8)))

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

Array = npt.NDArray[Any]
WIDE_FLOATS = ("float32", "float64")
FLOATS = (*WIDE_FLOATS, "float16")  # input dtypes of the contract
SCHEMES = ("asymmetric", "symmetric", "symmetric-full", "symmetric-gptq")
UNITS = (1.0, 0.125, 1 / 3, 0.1, 0.0078125, 2.7182818284590451)  # dyadic ones keep arithmetic exact, the others round
DAMPINGS = (0.01, 0.1, 1.0)
# What is small and an option of an operation stands here: a suite file has no small literals.
BOUNDARY_RANGES = (0.005, 0.1, 0.3)  # the first is the published one
EPSILONS = (0.0, 0.0, 1e-8, 0.125)  # of a min-max scale
STEP_FLOORS = (0.0, 0.0, 1e-5, 2.0)  # of a learned step
SMOOTHINGS = (0.0, 1e-3, 0.25)  # added to probabilities
PUBLISHED_FLOOR = 1e-8  # of a probability in the map loss
LEFT_OVER = (0.0, 1e-3, 1e-5)  # of a weight that an update cancels
TOLERANCES = (1e-6, 1e-3)  # asked of the certified solve; an option of the operation, not of a comparison


def float_dtypes(*, half: bool = False) -> st.SearchStrategy[str]:
    """Input dtypes of the contract; ``half`` adds float16."""
    return st.sampled_from(FLOATS if half else WIDE_FLOATS)


def integers(shape: Any, limit: int) -> st.SearchStrategy[Array]:
    """int64 between ``limit`` and its opposite; ``shape`` may be drawn itself."""
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
    return np.asarray(draw(integers(shape, bound)) / 8, kind)


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
    values = draw(integers((m, k), 999)) * draw(st.sampled_from(UNITS))
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
        row = draw(integers((k,), 99)) / 8
        rows.append(row * 0 if kind == "zero" else np.full(k, row[0]) if kind == "constant" else row)
    return np.asarray(rows).astype(draw(float_dtypes(half=True)))


def symmetric(c: Array, dtype: str) -> Array:
    """A matrix that is symmetric up to rounding, in a dtype and to the last bit."""
    c = c.astype(dtype)
    return np.asarray(np.triu(c) + np.triu(c, 1).T)


@st.composite
def hessians(draw: st.DrawFn, k: int, dtype: str) -> Array:
    """XᵀX (k, k), exactly symmetric: well-conditioned, rank-deficient, dead columns, diagonal, equal diagonal."""
    kind = draw(st.sampled_from(["good", "good", "few tokens", "dead", "diagonal", "equal diagonal"]))
    if kind == "diagonal":
        return np.diag(draw(arrays(np.int64, (k,), elements=st.integers(1, 9), fill=st.nothing()))).astype(dtype)
    tokens = draw(st.integers(1, k)) if kind == "few tokens" else 2 * k + 4
    x = draw(integers((tokens, k), 9)).astype(np.float64)
    if kind == "dead":
        x[:, draw(arrays(np.bool_, (k,)))] = 0.0
    h = symmetric(x.T @ x, "float64")
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
    w = draw(integers((m, k), 999)) / draw(st.sampled_from([999.0, 100.0, 64.0]))
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
    d = draw(integers((m, k), 99)) * draw(st.sampled_from(UNITS))
    if kind == "low rank":
        inner = draw(st.integers(1, min(m, k)))
        d = (draw(integers((m, inner), 9)) @ draw(integers((inner, k), 9))).astype(np.float64)
    tokens = draw(st.integers(1, k)) if kind == "few tokens" else 2 * k + 2
    x = draw(integers((tokens, k), 9)).astype(np.float64)
    if kind == "range":
        x = x * np.ldexp(1.0, -np.arange(k))
    if kind == "dead":
        x[:, draw(arrays(np.bool_, (k,)))] = 0.0
    c = x.T @ x
    if not singular:
        c += np.diag(np.maximum(np.diag(c), 1.0))
    return PatchProblem(d.astype(dtype), symmetric(c, dtype), rank)


def seeds() -> st.SearchStrategy[int]:
    """Keys of 64 bits, those with a high word among them."""
    return st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1), st.sampled_from([2**32, 2**63, 2**64 - 1]))

"""The certified EoRA solve of both backends: right on every spectrum, loud where it cannot be fast.

Oracles are float64 eigenvalues of M = D C Dᵀ of exactly the numbers given. Tolerances are the ones that the backends
state: ``granted`` is the error that an objective computed in float32 (float64) may have.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from lowbit.accel.common import krylov
from lowbit.reference.errors import SpecError
from lowbit.reference.types import Compensation

Array = npt.NDArray[Any]

U32, U64 = 2.0**-24, 2.0**-53


class Side(NamedTuple):
    """One backend's module with its arrays converted at the edge."""

    module: ModuleType
    own: Callable[[Array], Any]

    def certified(self, d: Array, c: Array, **options: Any) -> Compensation[Array]:
        found = self.module.eora_certified(self.own(d), self.own(c), **options)
        return Compensation(np.asarray(found.B), np.asarray(found.A), found.objective, found.lower_bound, found.method)


@pytest.fixture(params=["torch_cuda", "numba_cpu"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    if request.param == "torch_cuda":
        torch = pytest.importorskip("torch")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield Side(importlib.import_module("lowbit.accel.torch_cuda.eigenspace"), torch.from_numpy)
        torch.set_num_threads(threads)
    else:
        pytest.importorskip("numba")
        yield Side(importlib.import_module("lowbit.accel.numba_cpu.eigenspace"), np.asarray)


@pytest.fixture
def forced(side: Side, monkeypatch: pytest.MonkeyPatch) -> Side:
    """The Krylov path at any size, with blocks as small as the rank allows and a basis up to the whole space."""
    monkeypatch.setattr(krylov, "EXACT_BELOW", 0)
    monkeypatch.setattr(krylov, "FILL", 1.0)
    monkeypatch.setattr(krylov, "MULTIPLE", 1)
    monkeypatch.setattr(krylov, "OVERSAMPLE", 4)
    return side


def eigenvalues(d: Array, c: Array) -> Array:
    """All eigenvalues of D C Dᵀ, descending, in float64."""
    wide = d.astype(np.float64)
    m = wide @ c.astype(np.float64) @ wide.T
    return np.linalg.eigvalsh((m + m.T) / 2)[::-1]


def true_objective(d: Array, c: Array, found: Compensation[Array]) -> float:
    e = d.astype(np.float64) - found.B.astype(np.float64) @ found.A.astype(np.float64)
    return float(np.sum((e @ c.astype(np.float64)) * e))


def problem(
    spectrum: Array, k: int, rng: np.random.Generator, *, moment: str = "wishart", dtype: Any = np.float32
) -> tuple[Array, Array]:
    """D (m, k), C (k, k) such that D C Dᵀ has this spectrum, up to rounding to ``dtype``."""
    m = spectrum.size
    u = np.linalg.qr(rng.standard_normal((m, m)))[0]
    v = np.linalg.qr(rng.standard_normal((k, k)))[0]
    root = np.zeros((m, k))
    n = min(m, k)
    root[:n, :n] = np.diag(np.sqrt(spectrum[:n]))
    if moment == "identity":
        return (u @ root @ v).astype(dtype), np.eye(k, dtype=dtype)
    x = rng.standard_normal((3 * k, k))
    c = x.T @ x / (3 * k)
    lower = np.linalg.cholesky(c)
    return (u @ root @ v @ np.linalg.inv(lower)).astype(dtype), c.astype(dtype)


def check(d: Array, c: Array, rank: int, found: Compensation[Array], *, tolerance: float = 1e-6) -> None:
    """The certificate and the numbers that go with it."""
    values = eigenvalues(d, c)
    best = float(values[rank:].clip(0).sum())
    total = float(np.abs(values).sum())
    unit = U64 if d.dtype == np.float64 else U32
    # Both sides of every comparison carry float64 rounding of sums of the size of tr M, and D C Dᵀ of rounded C may
    # have negative eigenvalues of that size in the unit of the input.
    slack = 8 * max(d.shape) * U64 * total + float(-values.clip(max=0).sum())
    real = true_objective(d, c, found)
    granted = (4 if unit == U32 else 64) * unit * real + 8 * unit * math.sqrt(abs(real) * total / min(d.shape))
    assert found.B.shape == (d.shape[0], rank)
    assert found.A.shape == (rank, d.shape[1])
    assert found.lower_bound <= best + slack
    assert found.lower_bound <= found.objective
    assert real >= best - slack
    assert abs(found.objective - real) <= granted + slack
    # An exact answer has B and A rounded to the type of D: second order in that rounding.
    assert found.objective <= found.lower_bound * (1 + tolerance) + slack + (16 * unit) ** 2 * total * max(d.shape)


SPECTRA: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "power": lambda n, rng: np.arange(1.0, n + 1) ** -1.7,
    "flat head": lambda n, rng: np.where(np.arange(n) < n // 3, 1.0, 1e-3),
    "all equal": lambda n, rng: np.ones(n),
    "repeated across the cut": lambda n, rng: np.repeat([8.0, 2.0, 0.5, 0.01], -(-n // 4))[:n],
    "cluster across the cut": lambda n, rng: np.where(
        np.arange(n) < 10, 1 + 1e-9 * rng.standard_normal(n), 0.05 * rng.random(n)
    ),
    "low rank": lambda n, rng: np.where(np.arange(n) < 7, 1.0 + np.arange(n), 0.0),
    "rank below the wanted": lambda n, rng: np.where(np.arange(n) < 2, 1.0, 0.0),
    "twelve decades": lambda n, rng: 10.0 ** (-12 * np.arange(n) / (n - 1)),
    "one giant": lambda n, rng: np.where(np.arange(n) == 0, 1e8, rng.random(n)),
    "geometric": lambda n, rng: 0.8 ** np.arange(n),
    "random": lambda n, rng: rng.random(n) ** 4,
    "zero": lambda n, rng: np.zeros(n),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("moment", ["wishart", "identity"])
@pytest.mark.parametrize("shape", [(48, 48), (40, 90), (90, 40)])
def test_certificate_holds_on_every_spectrum(forced: Side, spectrum: str, moment: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    m, k = shape
    values = np.zeros(m)
    values[: min(m, k)] = np.sort(SPECTRA[spectrum](min(m, k), rng))[::-1]
    d, c = problem(values, k, rng, moment=moment)
    for rank in (1, 5, 9):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # falling through is allowed here; being wrong is not
            found = forced.certified(d, c, rank=rank)
        check(d, c, rank, found)


def test_certificate_holds_in_hundreds_of_random_cases(forced: Side) -> None:
    rng = np.random.default_rng(11)
    fast = 0
    for case in range(200):
        m, k = (int(n) for n in rng.integers(30, 110, 2))
        n = min(m, k)
        values = np.zeros(m)
        decades = float(rng.uniform(0.1, 6))
        values[:n] = np.sort(10.0 ** (-decades * rng.random(n) ** rng.uniform(0.3, 2)))[::-1]
        d, c = problem(values, k, rng, moment="identity" if case % 4 == 0 else "wishart")
        rank = int(rng.integers(1, max(2, n // 5 - 4)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = forced.certified(d, c, rank=rank)
        fast += found.method == "krylov"
        check(d, c, rank, found)
    assert fast > 100  # else this test is about the exact path


@pytest.mark.parametrize("moment", ["zero", "rank one", "half rank", "dead channels", "huge range"])
def test_degenerate_second_moments(forced: Side, moment: str) -> None:
    rng = np.random.default_rng(3)
    m, k = 60, 70
    x = rng.standard_normal((2 * k, k))
    if moment == "zero":
        x[:] = 0
    elif moment == "rank one":
        x[1:] = 0
    elif moment == "half rank":
        x[k // 2 :] = 0
    elif moment == "dead channels":
        x[:, ::3] = 0
    else:
        x *= 10.0 ** rng.uniform(-5, 1, k)
    c = (x.T @ x).astype(np.float32)
    c = (c + c.T) / 2
    d = (rng.standard_normal((m, k)) * 0.01).astype(np.float32)
    for rank in (1, 6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = forced.certified(d, c, rank=rank)
        check(d, c, rank, found)


def test_zero_error_needs_no_patch(forced: Side) -> None:
    found = forced.certified(np.zeros((50, 60), np.float32), np.eye(60, dtype=np.float32), rank=3)
    assert found.objective == 0
    assert found.lower_bound == 0
    assert not (found.B @ found.A).any()


@pytest.mark.parametrize("factor", [1e-18, 1e-9, 1e9, 1e18])
def test_scale_of_the_inputs_does_not_matter(forced: Side, factor: float) -> None:
    rng = np.random.default_rng(5)
    d, c = problem(np.sort(rng.random(64) ** 6)[::-1], 64, rng)
    plain = forced.certified(d, c, rank=4)
    assert plain.method == "krylov"
    for scaled_d, scaled_c in ((d * np.float32(factor), c), (d, c * np.float32(factor))):
        found = forced.certified(scaled_d, scaled_c, rank=4)
        assert found.method == "krylov"
        check(scaled_d, scaled_c, 4, found)


@pytest.mark.parametrize("split", ["balanced", "left"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_and_splits(forced: Side, split: str, dtype: Any) -> None:
    rng = np.random.default_rng(9)
    d, c = problem(np.sort(rng.random(64) ** 6)[::-1], 80, rng, dtype=dtype)
    found = forced.certified(d, c, rank=4, split=split)
    wanted = np.float64 if dtype == np.float64 else np.float32
    assert found.B.dtype == wanted
    assert found.A.dtype == wanted
    assert found.method == "krylov"
    check(d.astype(wanted), c.astype(wanted), 4, found)
    lengths_b, lengths_a = (
        np.linalg.norm(found.B, axis=0),
        np.linalg.norm(found.A @ np.linalg.cholesky(c.astype(np.float64)), axis=1),
    )
    # Rows of A in the metric of C have the length of the singular value, or its root when balanced.
    singular = np.sqrt(eigenvalues(d, c)[:4])
    share = np.sqrt(singular) if split == "balanced" else np.ones(4)
    loose = math.sqrt(U32)  # vectors, unlike values, are accurate to first order only
    assert np.allclose(lengths_b, share, rtol=loose)
    assert np.allclose(lengths_a, singular / share, rtol=loose)


def test_float64_input_certifies_beyond_float32(forced: Side) -> None:
    rng = np.random.default_rng(13)
    d, c = problem(0.7 ** np.arange(60.0), 60, rng, dtype=np.float64)
    found = forced.certified(d, c, rank=4, tolerance=1e-11)
    assert found.method == "krylov"
    check(d, c, 4, found, tolerance=1e-11)


def test_same_input_same_bytes(side: Side) -> None:
    rng = np.random.default_rng(2)
    d = rng.standard_normal((1050, 1100)).astype(np.float32) * (np.arange(1.0, 1101.0) ** -0.8).astype(np.float32)
    c = np.diag((np.arange(1, 1101) ** -0.5).astype(np.float32))
    np.random.seed(1)  # noqa: NPY002  the global state must neither be read nor moved
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # type: ignore[index, union-attr]
    first = side.certified(d, c, rank=8)
    second = side.certified(d, c, rank=8)
    assert first.method == "krylov"  # above the size, without any test's help
    assert first.B.tobytes() == second.B.tobytes()
    assert first.A.tobytes() == second.A.tobytes()
    assert first[2:] == second[2:]
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002  # type: ignore[index]
    check(d, c, 8, first)


def test_small_layers_are_solved_exactly(side: Side) -> None:
    rng = np.random.default_rng(4)
    for m, k in ((12, 9), (9, 12), (1, 1), (120, 40)):
        d = rng.standard_normal((m, k)).astype(np.float32)
        x = rng.standard_normal((2 * k, k))
        c = (x.T @ x).astype(np.float32)
        for rank in {1, min(m, k)}:
            found = side.certified(d, c, rank=rank)
            assert found.method == "exact"
            check(d, c, rank, found)


def test_inputs_are_not_written_and_may_be_strided(forced: Side) -> None:
    rng = np.random.default_rng(6)
    d, c = problem(np.sort(rng.random(64) ** 6)[::-1], 64, rng)
    plain = forced.certified(d, c, rank=4)
    wide = np.zeros((128, 128), np.float32)
    wide[::2, ::2] = d
    strided = wide[::2, ::2]
    found = forced.certified(strided, np.asfortranarray(c), rank=4)
    assert (wide[::2, ::2] == d).all()
    check(d, c, 4, found)
    assert abs(found.objective - plain.objective) <= 8 * U32 * plain.objective


@pytest.mark.parametrize(
    ("spectrum", "options", "reason"),
    [
        ("all equal", {}, "half of the space|exhausted|rounding"),
        ("flat head", {"tolerance": 1e-9}, "below what float32 products can certify"),
        ("rank below the wanted", {}, "rounding|gap|exhausted"),
        ("slow", {}, "half of the space"),
    ],
)
def test_a_failed_certificate_is_loud(
    forced: Side, monkeypatch: pytest.MonkeyPatch, spectrum: str, options: dict[str, Any], reason: str
) -> None:
    rng = np.random.default_rng(8)
    n = 96
    values = 1 - 1e-3 * np.arange(n) / n if spectrum == "slow" else np.sort(SPECTRA[spectrum](n, rng))[::-1]
    monkeypatch.setattr(krylov, "FILL", 0.5)
    d, c = problem(values, n, rng, moment="identity" if spectrum == "all equal" else "wishart")
    with pytest.warns(RuntimeWarning, match=f"no fast certificate.*({reason}).*solving exactly"):
        found = forced.certified(d, c, rank=4, **options)
    assert found.method == "exact"
    check(d, c, 4, found)


def test_outer_norm_bounds_what_the_basis_misses(forced: Side) -> None:
    """β must be above the norm outside the basis also when the basis is deliberately bad."""
    rng = np.random.default_rng(10)
    d, c = problem(np.sort(rng.random(64))[::-1], 64, rng)
    op: Any = forced.module._Operator(forced.own(d), forced.own(c))
    basis = forced.own(np.linalg.qr(rng.standard_normal((64, 9)))[0].T.copy())
    space = krylov._Krylov(op, basis)
    v = np.asarray(basis)
    wide = d.astype(np.float64)
    m = wide @ c.astype(np.float64) @ wide.T * op.d_scale**2 * op.c_scale
    outside = np.eye(64) - v.T @ v
    norm = float(np.linalg.norm(outside @ m @ outside, 2))
    for enough in (0.0, 2 * norm, math.inf):
        assert krylov._outer_norm(op, space, enough) >= norm


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_spectrum_and_optimum_of_exact_rank(side: Side, shape: tuple[int, int], dtype: Any) -> None:
    m, k = shape
    rng = np.random.default_rng(14)
    x = rng.standard_normal((50, k))
    c = (x.T @ x).astype(dtype)
    d = (rng.integers(-3, 4, (m, 2)) @ rng.integers(-3, 4, (2, k))).astype(dtype)  # rank two, exactly
    spectrum = np.asarray(side.module.error_spectrum(side.own(d), side.own(c)))
    wanted = np.linalg.svd(d.astype(np.float64) @ np.linalg.cholesky(c.astype(np.float64)), compute_uv=False)
    unit = U64 if dtype == np.float64 else U32
    assert spectrum.dtype == dtype
    assert spectrum.shape == wanted.shape
    assert (np.diff(spectrum) <= 0).all()
    assert np.abs(spectrum - wanted).max() <= 8 * max(shape) * unit * wanted[0]
    best = side.module.optimum(side.own(d), side.own(c), rank=1)
    assert abs(best - wanted[1] ** 2) <= 8 * max(shape) * U64 * wanted[0] ** 2
    assert side.module.optimum(side.own(d), side.own(c), rank=2) <= 8 * max(shape) * U64 * wanted[0] ** 2


def test_within_agrees_with_certified(forced: Side) -> None:
    rng = np.random.default_rng(12)
    d, c = problem(np.sort(rng.random(80) ** 6)[::-1], 70, rng)
    full = forced.certified(d, c, rank=4)
    low = forced.module.eora_within(forced.own(d), forced.own(c), rank=4)
    assert np.asarray(low.B).tobytes() == full.B.tobytes()
    assert np.asarray(low.A).tobytes() == full.A.tobytes()
    with pytest.warns(RuntimeWarning, match="eora_within: no fast certificate"):
        forced.module.eora_within(forced.own(d), forced.own(c), rank=4, tolerance=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be between 1 and 5"),
        ({"rank": 6}, "rank must be between 1 and 5"),
        ({"rank": 1, "split": "right"}, "split must be"),
        ({"rank": 1, "tolerance": -1.0}, "tolerance must be finite"),
        ({"rank": 1, "tolerance": math.nan}, "tolerance must be finite"),
    ],
)
def test_bad_arguments(side: Side, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        side.certified(np.ones((5, 6), np.float32), np.eye(6, dtype=np.float32), **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(side: Side, bad: float) -> None:
    d, c = np.ones((5, 6), np.float32), np.eye(6, dtype=np.float32)
    d[2, 3] = bad
    with pytest.raises(SpecError, match=r"d holds 1 NaN or infinite values, the first at \(2, 3\)") as caught:
        side.certified(d, c, rank=1)
    assert caught.value.clause == "A-4"
    d[2, 3], c[1, 1] = 0, bad
    with pytest.raises(SpecError, match=r"c holds 1 NaN or infinite values, the first at \(1, 1\)"):
        side.certified(d, c, rank=1)


def test_finite_values_whose_sum_overflows_are_accepted(side: Side) -> None:
    d = np.full((5, 6), 3e38, np.float32)
    assert side.module._problem("E-1", side.own(d), side.own(np.eye(6, dtype=np.float32))) is None


def test_the_residual_moment_of_several_panels_is_that_of_the_specification(side: Side) -> None:
    """More columns than two panels: sums and the mirror image are made panel by panel."""
    from lowbit import reference

    random = np.random.default_rng(0)
    k = 1100
    x = random.standard_normal((2 * k, k)) * random.lognormal(size=k)
    c, a = x.T @ x, random.standard_normal((7, k))
    found = np.asarray(side.module.residual_moment(side.own(c), side.own(a)))
    assert np.array_equal(found, found.T)
    size = np.sqrt(np.outer(np.diag(c), np.diag(c)))
    # A C and A C Aᵀ are sums of k and k² products; seven random rows are far from dependent
    assert np.all(np.abs(found - reference.residual_moment(c, a)) <= 8 * k * U64 * size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 40, 600])
def test_an_indefinite_moment_gets_no_certificate(side: Side, k: int, dtype: Any) -> None:
    """Also where the error does not see the direction in which it is negative: a patch could go there."""
    draw = np.random.default_rng(k)
    x = draw.standard_normal((2 * k, k))
    direction = np.linalg.qr(draw.standard_normal((k, 1)))[0]
    good = x.T @ x / len(x)
    off = np.eye(k) - direction @ direction.T
    d = (draw.standard_normal((1, k)) @ off).astype(dtype)
    rounded = good.astype(np.float16).astype(dtype)
    assert side.certified(d, (rounded + rounded.T) / 2, rank=1).lower_bound >= 0
    c = off @ good @ off - 0.25 * np.linalg.norm(good) * direction @ direction.T
    c = ((c + c.T) / 2 + 0.25 * np.linalg.norm(good) * np.diag(direction[:, 0] ** 2 * 1.0)).astype(dtype)
    assert np.linalg.eigvalsh(c)[0] < -0.05 * np.linalg.norm(c)
    with pytest.raises(SpecError, match=r"c must (be positive semi-definite|have a diagonal)"):
        side.certified(d, c, rank=1)


def test_what_is_not_symmetric_is_refused_by_tiles(side: Side) -> None:
    c = np.eye(700, dtype=np.float32)
    c[3, 650] = 0.01
    with pytest.raises(SpecError, match=r"c must be symmetric, largest .* is 0.01"):
        side.certified(np.ones((1, 700), np.float32), c, rank=1)

"""Chapter K in both backends: the specification's ranks at sizes where it is slow, refusals, and hard budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lowbit
import lowbit.reference as ref
from lowbit.reference.errors import SpecError, Unsupported

Array = npt.NDArray[Any]

pytest.importorskip("numba")
pytest.importorskip("torch")


@pytest.fixture(params=("numba", "torch", "torch, bisecting to the end"))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    name, _, detail = request.param.partition(",")
    if detail:  # at these sizes everything would be sorted
        monkeypatch.setattr("lowbit.accel.torch_cuda.rank_budget._SORTED", 0)
    return lowbit.load(name)


def call(backend: Any, op: str, *arrays: Array, **options: Any) -> Any:
    """NumPy in, NumPy out."""
    result = getattr(backend, op)(*(backend.asarray(a) for a in arrays), **options)
    if hasattr(result, "_fields"):
        return tuple(backend.to_numpy(x) for x in result)
    return result if isinstance(result, float) else backend.to_numpy(result)


def model(seed: int, J: int = 300, R: int = 60, *, dtype: str = "float32") -> tuple[Array, ...]:
    """Spectra that fall like those of quantized layers, in seven shapes, some modules twice, some perfect."""
    g = np.random.default_rng(seed)
    shapes = np.array([[64, 64], [16, 64], [16, 64], [64, 64], [172, 64], [172, 64], [64, 172]])
    spectra = np.exp(-np.arange(R) * g.uniform(0.01, 0.3, (J, 1))) * g.lognormal(sigma=2, size=(J, 1))
    spectra[J // 2] = spectra[J // 3]
    spectra[::17] = 0
    spectra[3, 5:] = 0
    kind = np.resize(np.arange(7), J)
    cost = shapes[kind].sum(axis=1).astype(np.int32)
    low, high = g.integers(0, 5, J).astype(np.int32), g.integers(5, R + 1, J).astype(np.int32)
    return spectra.astype(dtype), g.lognormal(size=J).astype(dtype), cost, low, high, kind.astype(np.int32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("leftover", ["stop", "fill"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_ranks_are_those_of_the_specification(backend: Any, dtype: str, leftover: str, multiple: int) -> None:
    """Keys are float64 in a fixed order of operations, so ranks agree exactly, not only within a band."""
    S, g, c, low, high, _ = model(0, dtype=dtype)
    low, high = low // 4 * 4, high // 4 * 4
    least, most = int(c @ low), int(c @ high)
    for part in (0, 1, 7, 50, 99, 100):
        options: Any = {"budget": least + (most - least) * part // 100, "multiple": multiple, "leftover": leftover}
        for op, arrays in (
            ("allocate_greedy", (S, g, c, low, high)),
            ("allocate_threshold", (S, c, low, high)),
            ("allocate_proportional", (g, c, low, high)),
        ):
            expected = getattr(ref, op)(*arrays, **options)
            np.testing.assert_array_equal(call(backend, op, *arrays, **options), expected, err_msg=f"{op} {options}")


def test_sharing_and_training_agree_too(backend: Any) -> None:
    S, g, c, low, high, kind = model(1)
    low = np.zeros_like(low)
    pool = call(backend, "pool_modules", S, g, c, low, high, kind)
    wanted = ref.pool_modules(S, g, c, low, high, kind)
    np.testing.assert_allclose(pool[0], wanted.spectra, rtol=2.0**-22)
    for found, want in zip(pool[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(found, want)
    now = np.minimum(high, 8).astype(np.int32)
    kept = np.where(np.arange(60) < now[:, None], S, 0).astype(np.float32)
    rest = -np.sort(-np.where(np.arange(60) < now[:, None], 0, S).astype(np.float32), axis=1)
    for step in (0, 2, 40):
        options: Any = {"budget": int(c @ now), "step": step, "hysteresis": 0.1}
        arrays = (kept, rest, g, c, low, high, now)
        np.testing.assert_array_equal(
            call(backend, "reallocate_ranks", *arrays, **options), ref.reallocate_ranks(*arrays, **options)
        )


def test_a_first_unit_that_nothing_pays_for(backend: Any) -> None:
    """ "stop" buys nothing at all, "fill" goes on with everybody else, again and again."""
    J = 40
    S = np.tile(np.array([[4.0, 2.0, 1.0]], np.float32), (J, 1))
    g = np.ldexp(1.0, np.arange(J) % 9).astype(np.float32)
    c = (1 + np.arange(J) * 7 % 41).astype(np.int32)
    c[8] = 10**6
    g[8] = 2.0**40
    low, high = np.zeros(J, np.int32), np.full(J, 3, np.int32)
    for P in (0, 5, 100, 700, 10**6 - 1):
        assert not call(backend, "allocate_greedy", S, g, c, low, high, budget=P).any()
        filled = call(backend, "allocate_greedy", S, g, c, low, high, budget=P, leftover="fill")
        np.testing.assert_array_equal(
            filled, ref.allocate_greedy(S, g, c, low, high, budget=P, leftover="fill"), err_msg=str(P)
        )


def test_extreme_sizes_of_numbers(backend: Any) -> None:
    """Subnormal and huge gains, budgets beyond every cost, bounds of Rule C beyond every spectrum."""
    S = np.array([[1e-170, 1e-170], [1e150, 1e-3], [3e-162, 0.0]])
    one, c, zero, two = np.ones(3), np.ones(3, np.int32), np.zeros(3, np.int32), np.full(3, 2, np.int32)
    for P in range(7):
        expected = ref.allocate_greedy(S, one, c, zero, two, budget=P)
        np.testing.assert_array_equal(call(backend, "allocate_greedy", S, one, c, zero, two, budget=P), expected)
    assert call(backend, "allocate_greedy", S, one, c, zero, two, budget=2**62).tolist() == [0, 2, 1]
    far = np.full(3, 2**31 - 1, np.int32)
    σ = np.array([1.0, 0.0, 5e-324])
    for P in (0, 1, 12345):
        expected = ref.allocate_proportional(σ, c, zero, far, budget=P)
        np.testing.assert_array_equal(call(backend, "allocate_proportional", σ, c, zero, far, budget=P), expected)


def test_negative_zero_is_zero(backend: Any) -> None:
    S, none, c = np.array([[-0.0, -0.0], [2.0, -0.0]]), np.array([1.0, -0.0]), np.ones(2, np.int32)
    low, high = np.zeros(2, np.int32), np.full(2, 2, np.int32)
    assert not call(backend, "allocate_greedy", S, none, c, low, high, budget=9).any()
    assert call(backend, "allocate_threshold", S, c, low, high, budget=9).tolist() == [0, 1]
    assert call(backend, "allocate_proportional", none, c, low, high, budget=9).tolist() == [2, 0]


def test_torch_says_when_a_sum_would_not_fit() -> None:
    torch = lowbit.load("torch")
    σ, c, far = np.ones(2), np.full(2, 2**31 - 1, np.int32), np.full(2, 2**31 - 1, np.int32)
    with pytest.raises(Unsupported, match="give costs in a larger unit"):
        call(torch, "allocate_proportional", σ, c, np.zeros(2, np.int32), far, budget=2**62)


@pytest.mark.parametrize(
    ("op", "arrays", "options", "words"),
    [
        ("explained_error", ([[1e200, 1.0]],), {}, r"\[K-1\] the squares of spectra overflow float64"),
        ("explained_error", ([[1.0, 2.0]],), {}, r"\[K-1\] spectra must descend, got \[1\.\d*,? 2\.\d*\] in module 0"),
        ("explained_error", ([[1.0, -2.0]],), {}, r"\[K-1\] spectra must be >= 0"),
        (
            "explained_error",
            ([[1.0, np.nan]],),
            {},
            r"\[A-4\] spectra holds 1 NaN or infinite values, the first at \(0, 1\)",
        ),
        ("loss_importance", ([1.0], [[1.0]]), {"base": np.inf}, r"\[K-3\] base must be a finite number"),
        ("rank_cost", ([[1, 2]],), {"bits": True}, r"\[K-4\] bits must be an integer in 1\.\.64, got True"),
        ("rank_cost", ([[2**31 - 1, 9]],), {"bits": 8}, r"\[K-4\] the cost of a rank must fit int32, got 2147483656"),
        (
            "allocate_greedy",
            ([[1e150]], [1e10], [1], [0], [1]),
            {"budget": 1},
            r"\[K-5\] importance times squared spectrum overflows float64",
        ),
        (
            "allocate_greedy",
            ([[1.0]], [1.0], [0], [0], [1]),
            {"budget": 1},
            r"\[K-5\] cost must be .*got 0 for module 0",
        ),
        (
            "pool_modules",
            ([[1e150], [1.0]], [1e10, 1.0], [1, 1], [0, 0], [1, 1], [0, 0]),
            {},
            r"\[K-9\] importance times squared spectrum overflows float64",
        ),
        (
            "pool_modules",
            ([[1.0], [1.0]], [1.0, 1.0], [2**31 - 1, 1], [0, 0], [1, 1], [0, 0]),
            {},
            r"\[K-9\] the cost of a group must fit int32, got 2147483648",
        ),
        (
            "pool_modules",
            ([[1.0], [1.0]], [1.0, 1.0], [1, 1], [1, 0], [1, 0], [0, 0]),
            {},
            r"\[K-9\] group 0 has no rank in common: largest low 1, smallest high 0",
        ),
    ],
)
def test_refusals(backend: Any, op: str, arrays: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    given = [np.asarray(a) for a in arrays]
    given = [a.astype(np.int32) if a.dtype.kind == "i" else a for a in given]
    with pytest.raises(SpecError, match=words):
        call(backend, op, *given, **options)


def test_factors_of_a_patch_cut_to_any_rank(backend: Any) -> None:
    """A trained adapter, nested by the backend and cut: what is left is the tail of its own spectrum."""
    g = np.random.default_rng(5)
    b, a, x = g.standard_normal((48, 12)), g.standard_normal((12, 40)), g.standard_normal((200, 40))
    C = x.T @ x
    B, A = call(backend, "nest_patch", b, a, C)
    tail = ref.error_spectrum(b @ a, C) ** 2
    for r in (1, 6, 11, 12):
        left = ref.objective(b @ a - B[:, :r] @ A[:r], C)
        assert abs(left - tail[r:].sum()) < 1e-12 * tail.sum()

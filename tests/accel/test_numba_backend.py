"""The Numba backend as a whole: what it offers, layouts, dtypes, threads, refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import lowbit
from lowbit.conformance import calls
from lowbit.conformance.calls import Array, each, leaves
from lowbit.conformance.runner import run
from lowbit.reference.errors import SpecError
from lowbit.reference.protocol import Backend, operations

from .numba_cases import moment, weights

numba_cpu: Any = lowbit.load("numba")
OPS = operations()
DTYPES = ("float16", "float32", "float64")
CASES = {dtype: calls.named(dtype) for dtype in DTYPES}


def answer(call: calls.Call, arrays: Any = None) -> list[Array]:
    """Arrays of the answer, to other arrays where some are given."""
    result = getattr(numba_cpu, call.op)(*(call.arrays if arrays is None else arrays), **call.options)
    return [a for a in leaves(result) if isinstance(a, np.ndarray)]


def test_every_operation_of_the_contract_is_there() -> None:
    assert isinstance(numba_cpu, Backend)
    assert (numba_cpu.name, numba_cpu.compute_dtype, numba_cpu.device) == ("numba", "float32", "cpu")
    assert [op for op in OPS if not getattr(numba_cpu, op).__doc__] == []


@pytest.mark.parametrize("name", CASES["float64"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_kept_dtypes_follow_the_rule_and_bytes_repeat(name: str, dtype: str) -> None:
    call = CASES[dtype][name]
    given = [a for a in leaves(call.arrays) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in given]
    first = answer(call)
    assert [a.tobytes() for a in given] == before
    assert [a.tobytes() for a in first] == [a.tobytes() for a in answer(call)]
    floats = {a.dtype.name for a in first if a.dtype.kind == "f"}
    if call.op in calls.float64():
        assert floats == {"float64"}
    elif call.op in calls.float32():
        assert floats == {"float32"}
    elif floats:
        assert floats == {"float64" if dtype == "float64" else "float32"}
    assert {a.dtype.name for a in first} <= {"float32", "float64", "int32", "bool"}


@pytest.mark.parametrize("name", CASES["float64"])
@pytest.mark.parametrize("layout", ("strided", "reversed", "fortran", "read-only", "swapped"))
def test_layouts_do_not_matter(name: str, layout: str) -> None:
    call = CASES["float64"][name]

    def changed(a: Any) -> Any:
        if a.ndim == 0 and layout in ("reversed", "fortran"):  # NumPy's functions for these make it another shape
            return a.copy()
        if layout == "strided":
            wide = np.full((*a.shape, 2), 7, a.dtype)
            wide[..., 0] = a
            return wide[..., 0]
        if layout == "reversed" and a.ndim:
            return np.flip(np.flip(a).copy())
        if layout == "fortran":
            return np.array(a, order="F")
        if layout == "swapped":
            return a.astype(a.dtype.newbyteorder(">"))
        a = a.copy()
        a.flags.writeable = False
        return a

    plain, other = answer(call), answer(call, each(call.arrays, changed))
    assert [a.astype(a.dtype.newbyteorder("=")).tobytes() for a in other] == [a.tobytes() for a in plain]


@pytest.mark.parametrize("clause", ("A-2a", "A-3"))
def test_empty_and_wrong_calls(clause: str) -> None:
    assert {(outcome.status, outcome.note) for outcome in run(numba_cpu, [clause])} == {("pass", "")}


def test_the_number_of_threads_does_not_show() -> None:
    rng = np.random.default_rng(3)
    w, h = weights(130, 400, dtype="float32"), moment(400, dtype="float32")
    x = rng.standard_normal((300, 400)).astype(np.float32)
    q = numba_cpu.quantize(w, *numba_cpu.fit_grid(w, bits=3), bits=3)
    found = []
    for threads in (1, 2, 5):
        backend = lowbit.load("numba", threads=threads)
        found.append(
            [
                np.asarray(a).tobytes()
                for a in leaves(
                    (
                        backend.gptq(w, h, bits=3, group_size=100),
                        backend.sparsegpt(w, h),
                        backend.inverse_cholesky(h),
                        backend.moment_leaf(x, index=0),
                        backend.clip_search(w, bits=3),
                        backend.fit_grid(w, bits=3, granularity="tensor"),
                        backend.pack(q, bits=3),
                    )
                )
            ]
        )
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("shape", ((0, 8), (3, 0), (0, 0)))
def test_nothing_in_nothing_out(shape: tuple[int, int]) -> None:
    m, k = shape
    w, h = np.zeros(shape, np.float32), np.zeros((k, k), np.float32)
    grid = numba_cpu.fit_grid(w, bits=4)
    assert grid.scale.shape == (m, 1)
    assert numba_cpu.quantize(w, *grid, bits=4).shape == shape
    assert numba_cpu.round_half_even(w).shape == shape
    codes = np.zeros(shape, np.int32)
    assert numba_cpu.unpack(numba_cpu.pack(codes, bits=3), bits=3, length=k).shape == shape
    done = numba_cpu.gptq(w, h, bits=4)
    assert (done.codes.shape, done.scale.shape, done.group_index.shape, done.loss) == (shape, (m, 1), (k,), 0.0)
    assert numba_cpu.sparsegpt(w, h).mask.shape == shape
    assert numba_cpu.wanda(w, np.zeros(k, np.float32)).weight.shape == shape
    (node,) = numba_cpu.moment_leaf(w, index=0)
    assert (node.sum.shape, node.tokens) == ((k, k), m)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_a_bad_value_is_named_with_its_place(value: float) -> None:
    w, h, s, z = weights(3, 8), moment(8), np.ones((3, 1)), np.zeros((3, 1), np.int32)
    w[1, 5], bad = value, h.copy()
    bad[6, 2] = value
    where = r"w holds 1 NaN or infinite values, the first at \(1, 5\)"
    for refused, why in (
        (lambda: numba_cpu.fit_grid(w, bits=4), "x holds"),
        (lambda: numba_cpu.fit_grid(w, bits=4, granularity="tensor"), "x holds"),
        (lambda: numba_cpu.clip_search(w, bits=4), "x holds"),
        (lambda: numba_cpu.quantize(w, s, z, bits=4), r"x holds 1 NaN or infinite values, the first at \(1, 5\)"),
        (lambda: numba_cpu.gptq(w, h, bits=4), where),
        (lambda: numba_cpu.sparsegpt(w, h), where),
        (lambda: numba_cpu.wanda(w, np.ones(8)), where),
        (lambda: numba_cpu.gptq(weights(3, 8), bad, bits=4), r"h holds 1 .* the first at \(6, 2\)"),
        (lambda: numba_cpu.inverse_cholesky(bad), r"h holds 1 .* \(6, 2\)"),
        (lambda: numba_cpu.moment_leaf(w, index=0), r"x holds 1 .* \(1, 5\)"),
        (lambda: numba_cpu.recency_moment([w[None]], total=1), r"batches\[0\] holds 1 .* \(0, 1, 5\)"),
        (lambda: numba_cpu.svd_patch(w, rank=1), r"d holds 1 .* \(1, 5\)"),
        (lambda: numba_cpu.nearest_level(w, np.arange(2.0)), "x holds"),
        (lambda: numba_cpu.dequantize(np.zeros((3, 8), np.int32), s * value, z), "scale holds 3"),
    ):
        with pytest.raises(SpecError, match=why) as caught:
            refused()
        assert caught.value.clause == "A-4"


def test_a_large_tensor_names_the_place_too() -> None:
    x = np.zeros((300, 300), np.float32)
    x[299, 298] = np.nan
    with pytest.raises(SpecError, match=r"x holds 1 NaN or infinite values, the first at \(299, 298\)"):
        numba_cpu.fit_grid(x, bits=4, granularity="tensor")


W, H = weights(3, 8), moment(8)


@pytest.mark.parametrize(
    "call, clause, why",
    (
        (lambda: numba_cpu.quantize([[1.0]], W, W, bits=4), "A-3", "x must be a NumPy array, got list"),
        (lambda: numba_cpu.fit_grid(W.astype(int), bits=4), "Q-2", "x must be float16, float32 or float64, got int64"),
        (lambda: numba_cpu.fit_grid(W, bits=9), "Q-1", "asymmetric grids have 1 to 8 bits, got 9"),
        (lambda: numba_cpu.fit_grid(W, bits=4, scale_dtype="int8"), "Q-2", "scale_dtype must be None, float32"),
        (lambda: numba_cpu.fit_grid(W, bits=4, clip_ratio=0.0), "Q-2", "clip_ratio must be above 0.0 and at most 1.0"),
        (
            lambda: numba_cpu.fit_grid(W, bits=4, granularity="group", group_size=3),
            "Q-2",
            "group size 3 does not divide axis length 8",
        ),
        (lambda: numba_cpu.fit_grid(W * 1e6, bits=4, scale_dtype="float16"), "Q-2", "overflows the largest value"),
        (lambda: numba_cpu.gptq(W * 1e6, H, bits=4, group_size=4, scale_dtype="float16"), "Q-2", "overflows"),
        (lambda: numba_cpu.clip_search(W, bits=4, norm=0.0), "Q-5", "norm must be above 0.0, got 0.0"),
        (lambda: numba_cpu.clip_search(W, bits=4, grid=0), "Q-5", "grid must be an integer of at least 1, got 0"),
        (lambda: numba_cpu.pack(np.array([[1, 8]]), bits=3), "Q-6", r"code 8 at \(0, 1\) is outside 0..7"),
        (lambda: numba_cpu.pack(np.array([[1, -1]]), bits=8), "Q-6", r"code -1 at \(0, 1\) is outside 0..255"),
        (lambda: numba_cpu.pack(np.array([[2**40]]), bits=8), "Q-6", "codes must fit int32"),
        (lambda: numba_cpu.pack(np.array([[1]]), bits=3, layout="tight"), "Q-6", "layout must be 'dense' or 'padded'"),
        (
            lambda: numba_cpu.unpack(np.zeros((1, 2), np.int32), bits=3, length=9, layout="padded"),
            "Q-7",
            r"9 codes of 3 bits take 1 words per row, got words of shape \(1, 2\)",
        ),
        (lambda: numba_cpu.round_clip(W, low=3, high=2), "R-2", "low..high must be a range of int32, got 3..2"),
        (lambda: numba_cpu.round_clip(W * np.nan, low=0, high=2), "R-2", r"x holds 24 NaN, the first at \(0, 0\)"),
        (
            lambda: numba_cpu.nearest_level(W, W[0] * 0),
            "R-3",
            "levels must ascend strictly, got -?0.0 before -?0.0 at 0",
        ),
        (lambda: numba_cpu.nearest_level(W, W[0, :0]), "R-3", "at least one level"),
        (
            lambda: numba_cpu.dequantize(np.zeros((3, 8), int), np.ones((3, 3)), np.ones((3, 3), int)),
            "Q-4",
            "3 scales do not",
        ),
        (lambda: numba_cpu.gptq(W, H[:4, :4], bits=4), "G-2", r"h must be of shape \(8, 8\), got \(4, 4\)"),
        (lambda: numba_cpu.gptq(W, np.triu(H), bits=4), "G-2", "h must be symmetric, largest"),
        (lambda: numba_cpu.gptq(W, -H, bits=4), "G-2", "h must have a diagonal >= 0"),
        (lambda: numba_cpu.gptq(W, H, bits=4, group_scales="old"), "G-2", "group_scales must be 'current' or 'block'"),
        (lambda: numba_cpu.inverse_cholesky(H * 0 + 1, damping=0.0), "G-1", "h is not positive definite with damping"),
        (lambda: numba_cpu.inverse_cholesky(H, damping=-1.0), "G-1", "damping must be finite and not negative"),
        (lambda: numba_cpu.sparsegpt(W, H, block_size=6), "G-5", "tuples of 4 do not divide block size 6"),
        (lambda: numba_cpu.sparsegpt(W, H, group_size=4), "G-5", "group_size 4 without bits"),
        (lambda: numba_cpu.wanda(W, -np.ones(8)), "G-6", "feature_moment must be >= 0, got -1.0"),
        (
            lambda: numba_cpu.wanda(W[:, :6], np.ones(6)),
            "G-6",
            "2:4 sparsity needs an input axis divisible by 4, got 6",
        ),
        (lambda: numba_cpu.moment_leaf(W, index=-1), "C-1", "index must be an integer of at least 0, got -1"),
        (lambda: numba_cpu.moment_total(()), "C-2", "a moment set without tokens has no mean"),
        (lambda: numba_cpu.recency_moment([], total=1), "C-3", r"batches must be \(b, T, k\) of one k, got \[\]"),
        (lambda: numba_cpu.svd_patch(W, rank=4), "C-4", "rank must be between 1 and 3"),
        (lambda: numba_cpu.scaled_svd_patch(W, -np.ones(8), rank=1), "C-5", "channel_scale must be >= 0, got -1.0"),
        (lambda: numba_cpu.quantize_adapter(W, W, H, bits=4), "E-7", r"b \(3, 8\) times a \(3, 8\) is not a patch"),
        (
            lambda: numba_cpu.quantize_adapter(W[:, :3], W, np.triu(H), bits=4),
            "E-7",
            "c must be symmetric, largest",
        ),
    ),
)
def test_refusals_name_clause_and_value(call: Any, clause: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        call()
    assert caught.value.clause == clause


def test_threads_are_checked_and_stay_with_their_object() -> None:
    backend = numba_cpu.configure(threads=3)
    assert repr(backend) == "<lowbit numba backend, 3 threads>"
    assert backend.round_half_even(np.array(2.5)) == 2.0
    assert {"gptq", "threads"} <= set(dir(backend))
    with pytest.raises(ValueError, match="threads must be None or a positive integer, got 0"):
        numba_cpu.configure(threads=0)
    with pytest.raises(AttributeError, match="the numba backend has no 'frobnicate'"):
        _ = backend.frobnicate


def test_a_failing_task_is_raised_and_the_others_end() -> None:
    from lowbit.accel.numba_cpu import _jit

    ended: list[int] = []

    def task(i: int) -> None:
        if i == 3:
            raise RuntimeError("third")
        ended.append(i)

    with _jit.limited_to(4), pytest.raises(RuntimeError, match="third"):
        _jit.share(40, task)
    assert 3 not in ended


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads is the point here
def test_a_forked_child_has_threads_of_its_own() -> None:
    backend = numba_cpu.configure(threads=3)
    x = np.arange(2_000_000, dtype=np.float32)
    expected = backend.round_half_even(x).sum()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(0 if backend.round_half_even(x).sum() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_a_place_for_machine_code_kernels_run_with_one_warning(tmp_path: Path) -> None:
    """A copy of the package beside which, as in the user's cache, a regular file is in the way of every folder."""
    package, wall = tmp_path / "lowbit", tmp_path / "wall"
    shutil.copytree(Path(lowbit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "vectors"))
    for place in (wall, package / "accel" / "numba_cpu" / "__pycache__"):
        place.write_text("no folder")
    environment = {
        **os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(wall / "numba"), "XDG_CACHE_HOME": str(wall / "cache"), "HOME": str(wall),
        "LOCALAPPDATA": str(wall),
    }  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=300
        )

    code = (
        "import lowbit, numpy as np; b = lowbit.load('numba');"
        "w = b.pack(np.arange(40, dtype=np.int32).reshape(1, 40) % 8, bits=3);"
        "print(lowbit.__file__, b.unpack(w, bits=3, length=40).sum(), b.round_half_even(np.array([2.5]))[0])"
    )
    found = run("-c", code)
    assert found.stdout.split() == [str(package / "__init__.py"), "140", "2.0"]
    assert found.stderr.count("UserWarning") == 1
    assert "NUMBA_CACHE_DIR" in found.stderr
    pytest.importorskip("typer")
    assert "float32 on cpu" in run("-m", "lowbit", "info").stdout

"""Chapter A: what holds for every operation, whatever it computes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.conformance import calls
from lowbit.conformance.calls import Array, Call, Empty, each
from lowbit.reference.errors import SpecError, Unsupported

NAMED = calls.named()
# Moment nodes are float64 arrays by definition: there is no other precision and no list to pass.
VALUES = {name: call for name, call in NAMED.items() if call.op not in ("moment_merge", "moment_total")}
FINITE = {  # sequences and named tuples call their arrays by other names, and have a rule of their own
    name: call
    for name, call in VALUES.items()
    if call.op not in ("round_half_even", "round_clip")
    and any(isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in call.arrays)
}
every_call = pytest.mark.parametrize("call", NAMED.values(), ids=NAMED)
calls_on_values = pytest.mark.parametrize("call", VALUES.values(), ids=VALUES)


def run(call: Call | Empty, arrays: Any = None) -> Any:
    """The specification's answer, on other arrays where some are given."""
    return getattr(ref, call.op)(*(call.arrays if arrays is None else arrays), **call.options)


def leaves(x: Any) -> list[Array]:
    """Every array of nested tuples and lists."""
    return [leaf for leaf in calls.leaves(x) if isinstance(leaf, np.ndarray)]


def assert_same(one: Any, other: Any) -> None:
    assert [a.tobytes() for a in leaves(one)] == [a.tobytes() for a in leaves(other)]


def strided(x: Array) -> Array:
    """The same values with every second element in between."""
    spaced = np.full(tuple(2 * n for n in x.shape), 99, x.dtype)
    view = spaced[(*(slice(None, None, 2) for _ in x.shape), ...)]  # the dots keep a 0-d view an array
    view[...] = x
    return view


def test_every_operation_is_called_here() -> None:
    assert list(dict.fromkeys(call.op for call in NAMED.values())) == ref.__all__


@every_call
def test_a1_inputs_are_never_written_and_results_are_fresh(call: Call) -> None:
    arrays = copy.deepcopy(call.arrays)
    result = run(call, arrays)
    assert_same(arrays, call.arrays)
    for out in leaves(result):
        assert out.flags.writeable
        if call.op != "moment_merge" or all(out is not given for given in leaves(arrays)):  # lone nodes are passed on
            assert not any(np.shares_memory(out, given) for given in leaves(arrays))


@every_call
def test_a2_non_contiguous_inputs(call: Call) -> None:
    assert_same(run(call, each(call.arrays, strided)), run(call))
    assert_same(run(call, each(call.arrays, lambda x: np.asarray(x, order="F"))), run(call))


@every_call
def test_a2_read_only_inputs(call: Call) -> None:
    arrays = copy.deepcopy(call.arrays)
    for array in leaves(arrays):
        array.flags.writeable = False
    assert_same(run(call, arrays), run(call))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@calls_on_values
def test_low_precision_inputs_are_the_same_numbers(call: Call, dtype: type) -> None:
    low = each(call.arrays, lambda x: x.astype(dtype) if x.dtype.kind == "f" else x)
    wide = each(low, lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x)
    result = run(call, low)
    assert_same(result, run(call, wide))
    assert all(out.dtype in (np.float64, np.int32, np.bool_) for out in leaves(result))


@calls_on_values
def test_array_likes(call: Call) -> None:
    listed = run(call, each(call.arrays, lambda x: x.tolist()))
    assert_same(listed, run(call, each(call.arrays, lambda x: np.asarray(x.tolist()))))
    assert all(np.array_equal(a, b) for a, b in zip(leaves(listed), leaves(run(call)), strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("call", FINITE.values(), ids=FINITE)
def test_a4_not_finite_is_refused_with_name_and_position(call: Call, bad: float) -> None:
    for i, name in enumerate(calls.arguments(call.op)[: len(call.arrays)]):
        if not isinstance(call.arrays[i], np.ndarray) or call.arrays[i].dtype.kind != "f":
            continue
        arrays = list(copy.deepcopy(call.arrays))
        at = tuple(n - 1 if axis else n // 2 for axis, n in enumerate(arrays[i].shape))  # no padding stands there
        arrays[i][at] = bad
        with pytest.raises(SpecError) as refused:
            run(call, arrays)
        assert refused.value.clause == "A-4"
        assert refused.value.reason == f"{name} holds {bad} at {at}"


@pytest.mark.parametrize("call", calls.empty(), ids=lambda call: call.op)
def test_a2_zero_size(call: Empty) -> None:
    assert calls.seen(run(call), call.expected) == call.expected


def test_a2_an_empty_list_is_an_empty_row() -> None:
    assert ref.pack([[]], bits=3).shape == (1, 0)


def test_unsupported_carries_its_reason() -> None:
    refusal = Unsupported("no float64 on this device")
    assert refusal.reason == str(refusal) == "no float64 on this device"
    assert not isinstance(refusal, SpecError)


def test_a3_a_refusal_names_the_clause() -> None:
    with pytest.raises(SpecError) as refused:
        ref.fit_grid(np.ones((2, 12)), bits=4, granularity="group", group_size=5)
    assert refused.value.clause == "Q-2"
    assert str(refused.value) == "[Q-2] group size 5 does not divide axis length 12"

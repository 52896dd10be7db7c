"""Chapter A: what holds for every operation, whatever it computes."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from lowbit.conformance import calls, compare
from lowbit.conformance.calls import Call, each, leaves
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.conformance.subject import ConformanceFailure
from lowbit.reference.errors import SpecError


def served(kit: Kit, listed: Iterable[Call]) -> Iterator[Call]:
    """The calls of operations that the backend has."""
    for call in listed:
        if kit.has(call.op):
            yield call


def snapshot(kit: Kit, value: Any) -> list[bytes]:
    """Bytes of everything inside a result or an argument; numbers and words by their text."""
    found = []
    for item in leaves(value):
        plain = isinstance(item, bool | int | float | str)
        found.append(repr(item).encode() if plain else np.ascontiguousarray(kit.numpy(item)).tobytes())
    return found


def answer(kit: Kit, call: Call, arguments: Any) -> Any:
    """Result of the call on the backend's own arrays."""
    return getattr(kit.backend, call.op)(*arguments, **call.options)


class Told:
    """What a backend says wrongly, all of it in one message: whoever mends it wants to know everything at once."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.wrong: list[str] = []

    def refused(self, call: Call, clauses: tuple[str, ...], words: tuple[str, ...] = ()) -> None:
        """The call must be refused, for a reason with these words."""
        with self.kit.part(call.op):
            try:
                self.kit.refused(call.op, *call.arrays, clauses=clauses, words=words, **call.options)
            except ConformanceFailure as failure:
                self.wrong.append(str(failure))

    def judge(self) -> None:
        """Fail if anything was wrong."""
        self.kit.require_none(self.wrong)


@clause("A-1", tier="exact")
def test_inputs_are_not_written(kit: Kit) -> None:
    """Bytes of every argument, before and after; also of the NumPy arrays that the backend's may share memory with."""
    for dtype in ("float32", "float64"):
        for call in served(kit, calls.ordinary(dtype)):
            with kit.part(f"{call.op} of {dtype}"):
                own = kit.own(call.arrays)
                outside = [a.copy() for a in leaves(call.arrays) if isinstance(a, np.ndarray)]
                before = snapshot(kit, own)
                answer(kit, call, own)
                kit.require(snapshot(kit, own) == before, f"{call.op}({call.options}) writes to an argument")
                inside = [a for a in leaves(call.arrays) if isinstance(a, np.ndarray)]
                same = all(np.array_equal(a, b) for a, b in zip(inside, outside, strict=True))
                kit.require(same, f"{call.op}({call.options}) writes to the array behind an argument")


def numpy_state() -> Any:
    """State of NumPy's global generator, as something that compares."""
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    return [np.asarray(part).tobytes() for part in state[1:]]


def ambient() -> list[tuple[Callable[[int], Any], Callable[[], Any]]]:
    """Seed and state of every global generator in this process: Python's, NumPy's, Torch's if someone imported it."""
    sources: list[tuple[Callable[[int], Any], Callable[[], Any]]] = [
        (random.seed, random.getstate),
        (np.random.seed, numpy_state),
    ]
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        sources.append((torch.manual_seed, lambda: torch.get_rng_state().numpy().tobytes()))
    return sources


@clause("A-1a", tier="exact")
def test_no_ambient_state(kit: Kit) -> None:
    """Global generators stand where they stood, and other seeds in them change no byte of a result."""
    keep = random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002
    try:
        for call in served(kit, calls.ordinary()):
            with kit.part(call.op):
                results = []
                for seed in (1, 2):
                    sources = ambient()
                    for reseed, _ in sources:
                        reseed(seed)
                    before = [state() for _, state in sources]
                    results.append(snapshot(kit, answer(kit, call, kit.own(call.arrays))))
                    after = [state() for _, state in sources]
                    kit.require(before == after, f"{call.op} draws from a global random generator")
                kit.require(results[0] == results[1], f"{call.op}({call.options}): the same call gives other bytes")
    finally:
        random.setstate(keep[0])
        np.random.set_state(keep[1])  # noqa: NPY002


def strided(kit: Kit, array: Array, transposed: bool) -> Any:
    """The same numbers as a view: every second entry of a larger array full of other numbers, or a transpose."""
    if transposed and array.ndim == 2:
        return kit.own(np.ascontiguousarray(array.T)).T
    larger = np.full(tuple(2 * n for n in array.shape), 77, array.dtype)
    every_second = tuple(slice(None, None, 2) for _ in array.shape)
    larger[every_second] = array
    return kit.own(larger)[(*every_second, ...)]  # with the dots a 0-d view stays an array


def digest(call: Call, result: Any) -> list[Any]:
    """What of a result two runs must share: products of factors, everything else field by field."""
    if hasattr(result, "B") and call.op not in ("quantize_adapter", "dora_gradient"):
        return [result.B.astype(np.float64) @ result.A.astype(np.float64)]
    return list(leaves(result))


@clause("A-2", tier="forward-error")
def test_strides_are_honoured(kit: Kit) -> None:
    """Views give the result of their contiguous copies, up to the order of sums."""
    for call in served(kit, calls.ordinary()):
        with kit.part(call.op):
            expected = digest(call, kit.convert(call.op, answer(kit, call, kit.own(call.arrays))))
            for transposed in (False, True):
                views = tuple(each(a, functools.partial(strided, kit, transposed=transposed)) for a in call.arrays)
                found = digest(call, kit.convert(call.op, answer(kit, call, views)))
                what = f"{call.op}({call.options}) on {'transposed' if transposed else 'strided'} views"
                for got, want in zip(found, expected, strict=True):
                    check_same_numbers(kit, call, got, want, what)


def check_same_numbers(kit: Kit, call: Call, got: Any, want: Any, what: str) -> None:
    """Equal, floats up to what another order of sums does to them."""
    array = np.asarray(want)
    if array.dtype.kind != "f":
        kit.check(compare.exact(got, want, what))
        return
    size = float(np.max(np.abs(array), initial=0.0))
    allowed = compare.layout_slack(20, condition(call), kit.u(np.float32)) * size
    kit.check(compare.forward(got, want, allowed + kit.tiny(20), what))


def condition(call: Call) -> float:
    """Condition number of what the call solves: of its second moment, squared where that is inverted and factorized."""
    squares = [np.linalg.cond(a) for a in leaves(call.arrays) if np.ndim(a) == 2 and a.shape[0] == a.shape[1] == 8]
    return float(max(squares, default=1.0)) ** 2


@clause("A-2a", tier="exact")
def test_zero_size_arrays(kit: Kit) -> None:
    """No rows, no columns, no tokens: empty results of the right shape, sums of nothing are zero."""
    for op, arrays, options, expected in calls.empty():
        if kit.has(op):
            with kit.part(op):
                result = kit.raw(op, *arrays, **options)
                found = calls.seen(kit.convert(op, result), expected)
                check_own(kit, op, result, kit.convert(op, result))
                kit.require(found == expected, f"{op}({options}) on zero-size arrays: {found}, expected {expected}")


def check_own(kit: Kit, op: str, result: Any, converted: Any) -> None:
    """Arrays of the contract are arrays of the backend, also those without axes: the next operation takes no others."""
    if isinstance(converted, np.ndarray):
        own = type(kit.backend.asarray(np.zeros(1)))
        kit.require(isinstance(result, own), f"{op} returned a {type(result).__name__} where a {own.__name__} belongs")
    elif isinstance(converted, tuple):
        fields = getattr(converted, "_fields", None)
        parts = [getattr(result, field) for field in fields] if fields else result
        for part, plain in zip(parts, converted, strict=True):
            check_own(kit, op, part, plain)


FLOATS = ("float16", "float32", "float64")


@clause("A-2b", tier="exact")
def test_dtypes_of_results(kit: Kit) -> None:
    """Floats keep the input's dtype but are float32 at least (or the wider compute dtype); codes int32, masks bool."""
    for dtype in FLOATS:
        for call in served(kit, calls.ordinary(dtype)):
            result = None
            with kit.part(f"{call.op} of {dtype}"):
                result = answer(kit, call, kit.own(call.arrays))
            if result is None:
                continue
            wanted = np.result_type(dtype, np.float32)
            allowed = {wanted, np.result_type(wanted, kit.backend.compute_dtype)}
            if call.op in calls.float32():
                allowed = {np.dtype(np.float32), np.result_type(np.float32, kit.backend.compute_dtype)}
            if call.op in calls.float64():
                allowed = {np.dtype(np.float64)}
            converted = kit.convert(call.op, result)
            check_own(kit, call.op, result, converted)
            for name, value in named_leaves(converted):
                if not isinstance(value, np.ndarray):
                    continue
                kind = value.dtype.kind
                fine = (
                    value.dtype in allowed if kind == "f" else value.dtype in (np.dtype(np.int32), np.dtype(np.bool_))
                )
                kit.require(fine, f"{call.op} on {dtype}: {name or 'the result'} has dtype {value.dtype}")


def named_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays with the field that holds each."""
    fields = getattr(value, "_fields", None)
    if fields:
        for field, item in zip(fields, value, strict=True):
            yield from named_leaves(item, field)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from named_leaves(item, name)
    else:
        yield name, value


@clause("A-3", tier="exact")
def test_wrong_arguments_are_refused(kit: Kit) -> None:
    """SpecError of the operation's chapter, with the offending value where there is one."""
    told = Told(kit)
    for op, arrays, options, words in calls.wrong():
        if kit.has(op):
            told.refused(Call(op, arrays, options), (*calls.cites(op), "A-3"), words)
    told.judge()


def by_numpy(value: Any, *, small: bool) -> Any:
    """The same numbers as NumPy's, also inside sequences: of 64 bits, or the smallest that hold them."""
    if isinstance(value, list | tuple):
        parts = [by_numpy(part, small=small) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.min_scalar_type(-abs(value)).type(value) if small and value < 2**63 else np.asarray(value)[()]
    if isinstance(value, float):
        return np.float32(value) if small and np.float32(value) == value else np.float64(value)
    return value


def wide_codes(listed: list[Call]) -> Iterator[Call]:
    """The calls, and each with codes of 8 bits: 2⁸ and 2⁷ wrap in an integer of 8."""
    for call in listed:
        yield call
        if isinstance(call.options.get("bits"), int):
            yield call._replace(options={**call.options, "bits": 8})


@clause("A-3a", tier="exact")
def test_numbers_of_numpy_are_numbers(kit: Kit) -> None:
    """A rank or a width that one operation answers is an option of the next: the bytes are those of Python's number."""
    for call in served(kit, wide_codes(calls.ordinary())):
        with kit.part(call.op):
            own = kit.own(call.arrays)
            try:
                expected = snapshot(kit, answer(kit, call, own))
            except SpecError:
                continue  # a width that this operation does not have
            for small in (False, True):
                options = {name: by_numpy(value, small=small) for name, value in call.options.items()}
                found = answer(kit, call._replace(options=options), by_numpy(own, small=small))
                kit.require(snapshot(kit, found) == expected, f"{call.op}({options}): not what Python's numbers give")


@clause("A-3b", tier="exact")
def test_matrices_and_masked_arrays_are_refused(kit: Kit) -> None:
    """By ``asarray`` or by the operation: a product of matrices is another one, and a mask would be lost."""
    told = Told(kit)
    for call in served(kit, calls.ordinary()):
        for position, array in enumerate(call.arrays):
            if not isinstance(array, np.ndarray):
                continue
            unlike: list[Any] = [np.ma.masked_array(array, np.zeros(array.shape, np.bool_))]
            unlike += [array.view(np.matrix)] if array.ndim == 2 else []
            for other in unlike:
                arrays = (*call.arrays[:position], other, *call.arrays[position + 1 :])
                told.refused(call._replace(arrays=arrays), (*calls.cites(call.op), "A-3"))
    told.judge()


@clause("A-4", tier="exact")
def test_non_finite_values_are_refused(kit: Kit) -> None:
    """A NaN or an infinity in any float argument: SpecError that says which argument and where."""
    told = Told(kit)
    for dtype in ("float32", "float64"):
        for call in served(kit, calls.ordinary(dtype)):
            if call.op in ("round_half_even", "round_clip", "moment_merge", "moment_total"):
                continue  # have their own rule; moments were checked leaf by leaf
            for position, name in enumerate(calls.arguments(call.op)[: len(call.arrays)]):
                for value in (np.nan, np.inf, -np.inf):
                    arrays = list(call.arrays)
                    poisoned, where = poison(arrays[position], value)
                    if poisoned is None:
                        continue
                    arrays[position] = poisoned
                    told.refused(call._replace(arrays=tuple(arrays)), ("A-4",), (name, where))
    told.judge()


def poison(value: Any, bad: float) -> tuple[Any, str]:
    """A copy with one bad entry and the text of its position; (None, "") for integers."""
    if hasattr(value, "_fields"):
        last = [field for field in value._fields if isinstance(getattr(value, field), np.ndarray)][-1]
        spoiled, where = poison(getattr(value, last), bad)
        return (None, "") if spoiled is None else (value._replace(**{last: spoiled}), where)
    if isinstance(value, list | tuple):
        spoiled, where = poison(value[-1], bad)
        return type(value)([*value[:-1], spoiled]), where
    if value is None or value.dtype.kind != "f":
        return None, ""
    copy = value.copy()
    at = tuple(n - 1 if i else n // 2 for i, n in enumerate(copy.shape))
    copy[at] = bad
    if copy.ndim == 2 and copy.shape[0] == copy.shape[1] == 8:
        copy[at[::-1]] = bad  # a second moment stays symmetric; the first bad entry in reading order is named
        at = min(at, at[::-1])
    return copy, str(at)

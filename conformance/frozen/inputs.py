"""What the tables of inputs are written with: draws, rules from bounds, and decisions that are clear."""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lowbit import reference

from .. import compare, judging, rules
from ..clauses import CLAUSES
from ..recording import bounded, record

Array = npt.NDArray[Any]
Case = rules.Case
Options: TypeAlias = dict[str, Any]
SPEC: Any = reference
U32, U64 = (compare.unit_roundoff(name) for name in ("float32", "float64"))
NARROW = "float32"


class Table(defaultdict[str, list[Case]]):
    """Cases by clause. An operation is named where it is not the only one that its clause needs."""

    def __init__(self) -> None:
        super().__init__(list)

    def call(self, clause: str, about: str, arrays: Iterable[Any], *expect: Any, op: Any = "", **options: Any) -> None:
        """Add a case with its rules."""
        (op,) = (op,) if op else CLAUSES[clause].ops
        self[clause].append({**rules.case(about, arrays, options, list(expect)), "op": op})

    def exactly(
        self, clause: str, about: str, arrays: Iterable[Any], *fields: str, op: Any = "", **options: Any
    ) -> None:
        """Add a case whose parts, all if none is named, are those of the specification's answer, value by value."""
        arrays = list(arrays)
        found = getattr(SPEC, op or CLAUSES[clause].ops[0])(*arrays, **options)
        names = fields or getattr(found, "_fields", ("",))
        parts = (rules.exact(f, judging.part(reference, found, f)) for f in names)
        self.call(clause, about, arrays, *parts, op=op, **options)

    def recorded(
        self,
        clause: str,
        test: str | Callable[..., None],
        about: str,
        /,
        *,
        narrow: bool = False,
        skip: tuple[str, ...] = (),
        **drawn: Any,
    ) -> None:
        """Add the cases of a test, on what it would draw, to those of its clause."""
        self[clause] += record(clause, test, [(about, drawn)], narrow=narrow, skip=skip, after=len(self[clause]))


def suite(name: str) -> Any:
    """A module of the suite, for its types and its derivations."""
    return importlib.import_module(f"lowbit.conformance.suite.test_{name}")


def generator(clause: str) -> np.random.Generator:
    """Draws of one clause."""
    return np.random.default_rng([ord(letter) for letter in clause])


def near(field: str, value: Any, allowed: Any, unit: float = U32) -> dict[str, Any]:
    """A forward rule from a bound that was computed for float32, or another precision."""
    return bounded(field, value, allowed, unit=unit)


def clear(field: str, value: Any) -> dict[str, Any]:
    """Codes whose ratios are far from ties."""
    return rules.codes(field, np.asarray(value), np.asarray(value, np.float64), 1)


def eighths(clause: str, *shape: int, limit: int = 24) -> Array:
    """Multiples of 1/8, float32."""
    return generator(clause).integers(-limit, limit + 1, shape).astype(np.float32) / np.float32(8)


def steady(answer: Callable[[Any], Any], given: Array, what: str) -> Any:
    """The decisions of an answer, which small changes of the input do not turn."""
    want = answer(given)
    for side in (-1, 1):
        for shift in (-1, 0, 1):
            got = answer((given * (1 + side * 2.0**-14) + shift * 2.0**-14 * (given != 0)).astype(given.dtype))
            if not np.array_equal(got, want):
                raise ValueError(f"{what}: decisions of this input are not clear")
    return want


def fractions(limit: int, of: int, *shape: int) -> Callable[[np.random.Generator], Array]:
    """To draw multiples of 1 / ``of``, up to a limit, float32."""
    return lambda random: random.integers(-limit, limit + 1, shape).astype(np.float32) / np.float32(of)


def settled(clause: str, draw: Callable[[np.random.Generator], Array], answer: Callable[..., Any], *more: Any) -> Array:
    """The first draw for which the decisions of an answer, given what else it needs, are clear."""
    for attempt in range(999):
        given = draw(np.random.default_rng([*map(ord, clause), attempt]))
        try:
            steady(lambda v: answer(v, *more), given, clause)
        except ValueError:
            continue
        return given
    raise ValueError(f"{clause}: no draw is clear")


def near_wide(field: str, value: Any, allowed: Any) -> dict[str, Any]:
    """A forward rule of an operation that computes in float64 whatever it is given."""
    return bounded(field, value, allowed, unit=U64, precision="float64")


def hard_scales() -> npt.NDArray[np.float32]:
    """Odd multiples of 1/64 (6, 1) for which x · fl(1/s) misses the most ties, in float32 and in float64."""
    halves = np.arange(-31, 32, 2) / 2
    misses = {}
    for odd in range(3, 201, 2):
        narrow = (halves * odd).astype(np.float32) * (np.float32(1) / np.float32(odd))
        wide = (halves * odd) * (1 / odd)
        misses[odd] = min(np.sum(np.rint(narrow) != np.rint(halves)), np.sum(np.rint(wide) != np.rint(halves)))
    worst = sorted(misses, key=lambda odd: -misses[odd])[:6]
    return (np.array(worst)[:, None] / 64).astype(np.float32)


def hessian(clause: str, k: int, load: float = 40) -> Array:
    """A moment of small integers that is well-conditioned."""
    tokens = generator(clause).integers(-3, 4, (3 * k, k)).astype(np.float64)
    return (tokens.T @ tokens + load * np.eye(k)).astype(np.float32)


def unit_rows(clause: str, m: int, k: int) -> Array:
    """Rows from -3 to 4 in hundredths of a kind: with three bits their scale is 1 exactly, their zero point 3."""
    w = generator(clause).integers(-350, 351, (m, k)) / 128
    w[:, 0], w[:, 1] = -3, 4
    return w.astype(np.float32)


def rank_three() -> Array:
    """An error (4, 6) of integers with two equal rows."""
    d = generator("C-4a").integers(-9, 10, (4, 6)).astype(np.float32)
    d[3] = d[2]
    return d


def six_inputs() -> dict[str, Array]:
    """Moments of six inputs, a regular and a singular one."""
    few = generator("E").integers(-3, 4, (3, 6)).astype(np.float64)
    return {"full rank": hessian("E-2a", 6, 10), "rank 3": (few.T @ few).astype(np.float32)}


class FirstDraws(NamedTuple):
    """Inputs of chapters Q, G, C and E that come from one generator: each is what it is after those above it."""

    x: Array  # (3, 8), the last row zeros
    general: Array  # (4, 8)
    steps: Array  # (4, 2)
    points: Array  # int32 (4, 2)
    dense: list[Array]  # int32 codes (2, 35) of 1 to 8 bits
    padded: list[Array]  # as many again
    tokens: Array  # (24, 8), integers
    h: Array  # (8, 8), their moment, damped
    w: Array  # (3, 8), for which decisions of second-order compression are clear
    power: Array  # (8,), positive integers
    leaves: list[Array]  # four of (6, 4)
    batches: list[Array]  # (1, 3, 4) and (2, 3, 4)
    d: Array  # (6, 8)
    channel: Array  # (8,), powers of two


@functools.cache
def first_draws() -> FirstDraws:
    """Draw them, one after the other."""
    random = np.random.default_rng(20240229)

    def floats(*shape: int) -> npt.NDArray[np.float32]:
        return random.standard_normal(shape).astype(np.float32)

    x = floats(3, 8)
    x[2] = 0
    general, steps = 3 * floats(4, 8), (0.1 + np.abs(floats(4, 2))).astype(np.float32)
    points = random.integers(0, 15, (4, 2)).astype(np.int32)
    dense, padded = ([random.integers(0, 2**b, (2, 35)).astype(np.int32) for b in range(1, 9)] for _ in range(2))
    tokens = random.integers(-3, 4, (24, 8)).astype(np.float64)
    h = (tokens.T @ tokens + 40 * np.eye(8)).astype(np.float32)
    while not _clear_weight(w := floats(3, 8), h):
        pass
    power = random.integers(1, 9, 8).astype(np.float32)
    leaves = [floats(6, 4) for _ in range(4)]
    batches, d = [floats(1, 3, 4), floats(2, 3, 4)], floats(6, 8)
    channel = np.ldexp(1.0, random.integers(-3, 4, 8)).astype(np.float32)
    return FirstDraws(
        x, general, steps, points, dense, padded, tokens, h, w, power, leaves, batches, d, channel
    )  # fmt: skip


def _clear_weight(w: Array, h: Array) -> bool:
    """Whether float32 and float64 take every decision of GPTQ and SparseGPT alike: perturbing w changes no code."""
    options: list[Options] = [
        {"bits": 3},
        {"bits": 4, "scheme": "symmetric-full"},
        {"bits": 4, "group_size": 4, "act_order": True},
        {"bits": 4, "group_size": 4, "act_order": True, "static_groups": True},
        {"bits": 3, "group_size": 4, "group_scales": "block", "block_size": 8},
        {"bits": 3, "group_size": 4},
    ]
    nearby = [w * (1 + side * 2.0**-12) + shift * 2.0**-12 for side in (-1, 1) for shift in (-1, 0, 1)]

    def decisions(v: Array) -> list[Array]:
        runs = [SPEC.gptq(v, h, **option) for option in options]
        return [*(r.codes for r in runs), *(r.zero_point for r in runs), SPEC.sparsegpt(v, h).mask]

    want = decisions(w)
    return all(np.array_equal(a, b) for v in nearby for a, b in zip(decisions(v), want, strict=True))

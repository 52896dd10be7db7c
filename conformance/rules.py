"""What the files of frozen vectors are made of: arguments, cases and rules, as JSON holds them.

Neither the specification nor the suite is needed here; what a rule means is told in ``vectors/v1/README.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .hexfloat import encode

Case = dict[str, Any]


class Node(NamedTuple):
    """A moment node, by the field names of the contract."""

    level: int
    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]  (as in the contract)
    sum: Any
    magnitude: Any
    tokens: int


class LookupTable(NamedTuple):
    """A look-up table, float or integer; a float one has no use for the last two."""

    breakpoints: Any
    slopes: Any
    intercepts: Any
    scale_bits: int = 0
    fraction_bits: int = 0


class Earlier(NamedTuple):
    """An argument that is a part of the result of a case before."""

    case: int
    field: str


def earlier(number: int, field: str) -> Earlier:
    """An argument that is a part of the result of case ``number``."""
    return Earlier(number, field)


def case(about: str, arrays: Iterable[Any], options: dict[str, Any], expect: list[dict[str, Any]]) -> Case:
    def encoded(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Earlier):
            return {"result": value._asdict()}
        fields = getattr(value, "_fields", None)
        if isinstance(value, LookupTable):
            whole = value.slopes.dtype.kind == "i"
            parts = {k: v for k, v in value._asdict().items() if whole or not isinstance(v, int)}
            return {"table": {k: v if isinstance(v, int) else encode(v) for k, v in parts.items()}}
        if fields and fields != Node._fields:
            return {"record": {k: encoded(v) for k, v in zip(fields, value, strict=True)}}
        if fields:
            return {"node": {k: v if isinstance(v, int) else encode(v) for k, v in zip(fields, value, strict=True)}}
        return [encoded(v) for v in value] if isinstance(value, list | tuple) else encode(value)

    return {"about": about, "arrays": [encoded(a) for a in arrays], "options": options, "expect": expect}


def _rule(field: str, rule: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "rule": rule, **more}


def exact(field: str, value: Any) -> dict[str, Any]:
    return _rule(field, "exact", value=encode(value))


def forward(field: str, value: Any, magnitude: Any, roundings: int) -> dict[str, Any]:
    shaped = np.broadcast_to(np.asarray(magnitude, np.float64), np.shape(value))
    wide = encode(np.asarray(value, np.float64))
    return _rule(field, "forward", value=wide, magnitude=encode(shaped), roundings=int(roundings))


def codes(field: str, value: Any, ratio: Any, roundings: int) -> dict[str, Any]:
    shaped = np.broadcast_to(np.asarray(ratio, np.float64), np.shape(value))
    return _rule(field, "codes", value=encode(value), ratio=encode(shaped), roundings=roundings)


def objective(d: Any, c: Any, best: float, norm: float, amplification: int = 1) -> dict[str, Any]:
    sizes = {"optimum": float(best).hex(), "norm": float(norm).hex(), "amplification": amplification}
    return _rule("", "objective", d=encode(d), c=encode(c), **sizes)


def magnitude(value: Any) -> dict[str, Any]:
    """A bound in few digits: rounded up into float32, and one number where all are alike."""
    exact = np.asarray(value, np.float64)
    short = exact.astype(np.float32)
    short = np.where(short < exact, np.nextafter(short, np.float32(np.inf)), short)
    return encode(short.ravel()[0] if short.size and np.all(short == short.ravel()[0]) else short)


def _bound(size: Any, roundings: int) -> dict[str, Any]:
    return {"magnitude": magnitude(size), "roundings": int(roundings)}


def same(field: str, number: int, of: str | None = None) -> dict[str, Any]:
    """The part equals a part of the result of another case of the file."""
    return _rule(field, "same", case=number, of=field if of is None else of)


def interval(field: str, low: Any, high: Any) -> dict[str, Any]:
    """Nothing is below ``low`` or above ``high``."""
    return _rule(field, "interval", low=encode(low), high=encode(high))


def certificate(field: str, optimum: Any, size: Any, roundings: int, *, least: bool = False) -> dict[str, Any]:
    """The part is at most the optimum; with ``least`` at least."""
    best = encode(np.asarray(optimum, np.float64))
    return _rule(field, "certificate", optimum=best, least=least, **_bound(size, roundings))


def candidate(field: str, values: Any, costs: npt.NDArray[np.float64], size: Any, roundings: int) -> dict[str, Any]:
    """The part is one of ``values`` (n,), and its cost (n, ...) the least."""
    return _rule(field, "candidate", values=encode(values), costs=encode(costs), **_bound(size, roundings))


def residual(d: Any, c: Any, optimum: float, size: float, roundings: int) -> dict[str, Any]:
    """‖(d − BA) c‖_F is at most the optimum."""
    best = encode(np.float64(optimum))
    return _rule("", "residual", d=encode(d), c=encode(c), optimum=best, **_bound(size, roundings))


def enclosure(field: str, radius: str, spectrum: Any, size: Any, roundings: int) -> dict[str, Any]:
    """Within its radius of every value lies a number of the spectrum."""
    return _rule(field, "enclosure", radius=radius, spectrum=encode(spectrum), **_bound(size, roundings))


def triangular(field: str, z: Any, calls: int = 0) -> dict[str, Any]:
    """The part Q is orthogonal and Qᵀz upper triangular with a diagonal that is not negative."""
    return _rule(field, "triangular", z=encode(z), calls=calls)


def trajectory(
    value: Any, fitness: npt.NDArray[np.float64], objective: float, size: Any, roundings: int
) -> dict[str, Any]:
    """The population is this one, or a decision was near and the search ends as well."""
    ends = {"fitness": encode(fitness), "objective": encode(np.float64(objective)), **_bound(size, roundings)}
    return _rule("population", "trajectory", value=encode(value), **ends)

"""How a result is judged by the rules of a frozen case; ``vectors/v1/README.md`` says the same in words.

Bounds come from what stands in the file and from :mod:`lowbit.conformance.compare`, never from the specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import compare
from .hexfloat import decode

__all__ = ["Judge", "part", "unit"]

F64: TypeAlias = npt.NDArray[np.float64]
Rule: TypeAlias = dict[str, Any]
Found: TypeAlias = Iterator[compare.Comparison]

KNOWN = frozenset(["exact", "same", "forward", "codes", "interval", "certificate", "candidate"])
KNOWN |= frozenset(["objective", "residual", "enclosure", "triangular", "trajectory"])


def part(backend: Any, result: Any, path: str) -> npt.NDArray[Any]:
    """Part of a result, or a product of parts in double precision.

    ``""`` is the result itself, ``"scale"`` a field, ``"0.sum"`` a field of an item, ``"A.T.2"`` a column of a field,
    ``"B @ A"`` a product.
    """
    first, *others = path.split(" @ ")
    if others:
        whole = part(backend, result, first).astype(np.float64)
        for other in others:
            whole = whole @ part(backend, result, other).astype(np.float64)
        return whole
    words = [word for word in path.split(".") if word]
    while words and not hasattr(result, "shape"):
        word = words.pop(0)
        result = result[int(word)] if word.isdigit() else getattr(result, word)
    array = np.asarray(result) if isinstance(result, bool | int | float) else np.asarray(backend.to_numpy(result))
    for word in words:
        array = array.T if word == "T" else array[int(word)]
    return array


def unit(backend: Any, inputs: list[Any], result: npt.NDArray[Any] | None = None) -> float:
    """Unit roundoff of a call: float64 inputs promise float64 work, others the backend's compute dtype."""
    wide = any(isinstance(a, np.ndarray) and a.dtype == np.float64 for a in inputs)
    u = compare.unit_roundoff("float64" if wide else str(backend.compute_dtype))
    return max(u, compare.unit_roundoff(result.dtype.name)) if result is not None and result.dtype.kind == "f" else u


class Judge:
    """A result of a case against its rules; ``earlier`` are the results of the cases before it, None where refused."""

    def __init__(self, backend: Any, inputs: list[Any], result: Any, earlier: Sequence[Any]) -> None:
        self.backend, self.inputs, self.result, self.earlier = backend, inputs, result, earlier

    def __call__(self, rule: Rule) -> Found:
        """Comparisons of one rule.

        Raises:
            ValueError: the rule has a name that this version does not know.
        """
        if rule["rule"] not in KNOWN:
            raise ValueError(f"no rule {rule['rule']!r}: the files are newer than this reader")
        judge: Callable[[Rule], Found] = getattr(self, rule["rule"])
        yield from judge(rule)

    def part(self, path: str) -> npt.NDArray[Any]:
        """Part of the result."""
        return part(self.backend, self.result, path)

    def unit(self, path: str) -> float:
        """Unit roundoff of a part; a product has that of its first factor."""
        return unit(self.backend, self.inputs, self.part(path.split(" @ ")[0]))

    def allowed(self, rule: Rule, path: str | None = None) -> F64:
        """γ(roundings) · magnitude, one rounding of double-precision work, and underflow."""
        u = self.unit(rule["field"] if path is None else path)
        if "precision" in rule:
            u = compare.unit_roundoff(rule["precision"])
        bound = compare.gamma(rule["roundings"], u) * decode(rule["magnitude"]).astype(np.float64)
        if "wide" in rule:
            bound = bound + compare.gamma(1, compare.unit_roundoff("float64")) * decode(rule["wide"]).astype(np.float64)
        return np.asarray(bound + compare.tiny(rule["roundings"], "float32"))

    # -- equality and bounds -------------------------------------------------------------------------------------------

    def exact(self, rule: Rule) -> Found:
        """Equal values."""
        yield compare.exact(self.part(rule["field"]), decode(rule["value"]), rule["field"] or "result")

    def same(self, rule: Rule) -> Found:
        """The values of another case, where it was answered."""
        other = self.earlier[rule["case"]]
        if other is not None:
            what = f"{rule['field'] or 'result'}, as in case {rule['case']},"
            yield compare.exact(self.part(rule["field"]), part(self.backend, other, rule["of"]), what)

    def forward(self, rule: Rule) -> Found:
        """Within a bound of the value."""
        got, want = self.part(rule["field"]), decode(rule["value"])
        yield compare.forward(got, want, self.allowed(rule), rule["field"] or "result")

    def codes(self, rule: Rule) -> Found:
        """Integers, off by one inside the band of a tie."""
        got, ratio, u = self.part(rule["field"]), decode(rule["ratio"]), unit(self.backend, self.inputs)
        size = decode(rule["band"]).astype(np.float64) if "band" in rule else ratio
        band = compare.tie_band(size, u, rule["roundings"])
        yield compare.codes(got, decode(rule["value"]), ratio, band, rule["field"] or "codes")

    def interval(self, rule: Rule) -> Found:
        """Between two ends."""
        low, high = decode(rule["low"]), decode(rule["high"])
        yield compare.interval(self.part(rule["field"]), low, high, rule["field"] or "result")

    # -- certificates --------------------------------------------------------------------------------------------------

    def certificate(self, rule: Rule) -> Found:
        """At most the optimum, or at least."""
        got, side = self.part(rule["field"]).astype(np.float64), -1.0 if rule["least"] else 1.0
        best, bound = (np.broadcast_to(a, got.shape) for a in (decode(rule["optimum"]), self.allowed(rule)))
        for at in np.ndindex(got.shape):
            one, other = side * float(got[at]), side * float(best[at])
            yield compare.certificate(one, other, float(bound[at]), rule["field"] or "result")

    def candidate(self, rule: Rule) -> Found:
        """One of some values, whose cost is the least of them."""
        got, values, costs = self.part(rule["field"]), decode(rule["values"]), decode(rule["costs"])
        bound = np.broadcast_to(self.allowed(rule), got.shape)
        for at in np.ndindex(got.shape):
            found = np.flatnonzero(values == got[at])
            reached = float(costs[(found[0], *at)]) if found.size else math.inf
            least = float(costs[(slice(None), *at)].min())
            yield compare.certificate(reached, least, float(bound[at]), f"cost of {rule['field'] or 'the choice'}")

    def missed(self, rule: Rule) -> tuple[F64, F64, int]:
        """d − BA, what weighs it, and the rank of B; in double precision, B and A cut to the rank asked for."""
        b, a = (self.part(f).astype(np.float64) for f in ("B", "A"))
        rank = rule.get("rank", b.shape[1])
        d, c = (decode(rule[name]).astype(np.float64) for name in ("d", "c"))
        return d - b[:, :rank] @ a[:rank], c, b.shape[1]

    def objective(self, rule: Rule) -> Found:
        """tr[(d − BA) c (d − BA)ᵀ] against its optimum."""
        residual, c, rank = self.missed(rule)
        reached = float(np.sum((residual @ c) * residual))
        norm, n = float.fromhex(rule["norm"]), max(residual.shape)
        allowed = compare.gram_gap(norm, rank, n, self.unit("B")) * rule["amplification"]
        yield compare.certificate(reached, float.fromhex(rule["optimum"]), allowed + compare.tiny(n, "float32"))

    def residual(self, rule: Rule) -> Found:
        """‖(d − BA) c‖ against its optimum."""
        residual, c, _ = self.missed(rule)
        reached, best = float(np.linalg.norm(residual @ c)), float(decode(rule["optimum"]))
        yield compare.certificate(reached, best, float(self.allowed(rule, "B")), "residual norm")

    def enclosure(self, rule: Rule) -> Found:
        """A number of the spectrum within the radius of every value."""
        values, radius = (self.part(rule[name]).astype(np.float64) for name in ("field", "radius"))
        distance = np.abs(decode(rule["spectrum"]) - values[..., None]).min(axis=-1)
        bound = np.broadcast_to(self.allowed(rule), values.shape)
        for at in np.ndindex(values.shape):
            one, other = float(distance[at]), float(radius[at])
            yield compare.certificate(one, other, float(bound[at]), f"distance of {rule['field']}")

    # -- others --------------------------------------------------------------------------------------------------------

    def triangular(self, rule: Rule) -> Found:
        """QᵀQ = I, and Qᵀz is upper triangular with a diagonal that is not negative; always in double precision."""
        u, q, z = compare.unit_roundoff("float64"), self.part(rule["field"]).astype(np.float64), decode(rule["z"])
        bound, r = compare.orthogonality(len(q), u), q.T @ z
        wrong = np.tril(r, -1) + np.diag(np.minimum(np.diag(r), 0.0))
        size = float(np.linalg.norm(z)) * (bound + compare.elementary(rule["calls"], u))
        yield compare.forward(q.T @ q, np.eye(len(q)), bound, "QᵀQ")
        yield compare.forward(wrong, np.zeros(wrong.shape), size + compare.tiny(1, "float32"), "Qᵀz")

    def trajectory(self, rule: Rule) -> Found:
        """The population itself; or a decision was within rounding, and the last objective is as good."""
        fitness = decode(rule["fitness"])
        error = np.broadcast_to(self.allowed(rule, "best"), fitness.shape)
        gap = float(self.part("best")[-1]) - float(decode(rule["objective"]))
        got, want = self.part(rule["field"]), decode(rule["value"])
        yield compare.trajectory([got], [want], [fitness], [error], (gap, float(error.max())))

"""What a test of the kit holds in its hands: one backend, its precision, and a place where margins are recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from lowbit import reference
from lowbit.reference import types
from lowbit.reference.errors import SpecError, Unsupported

from . import compare
from .clauses import Check, base_id
from .hexfloat import describe

__all__ = ["PROFILES", "ConformanceFailure", "Kit", "NotApplicable", "Outcome", "Status"]

Status: TypeAlias = Literal["pass", "fail", "unsupported", "not implemented"]

PROFILES = {"quick": 25, "full": 200, "stress": 2000}
"""Examples per check."""

_RESULTS: dict[str, type[Any]] = {
    "fit_grid": types.Grid,
    "clip_search": types.ClippedGrid,
    "quantize_scale": types.DoubleScale,
    "twn_code": types.TernaryCode,
    "lsq_init": types.LsqStart,
    "lsq_gradient": types.LsqGradient,
    "statsq": types.StatsCode,
    "start_oscillation": types.Oscillation,
    "track_oscillation": types.Oscillation,
    "boundary_statistics": types.BoundaryStatistics,
    "cga_step": types.AnnealedStep,
    "qkr_grad": types.QkrGradient,
    "bcq": types.BinaryCode,
    "bcq_refit": types.BinaryCode,
    "bcq_from_grid": types.BinaryCode,
    "bcq_pack": types.PackedBinary,
    "bcq_unpack": types.BinaryCode,
    "tune_step": types.TunedScales,
    "allocate_bits": types.BitAllocation,
    "genetic_search": types.GeneticSearch,
    "search_problem": types.SearchProblem,
    "optimal_search": types.OptimalTable,
    "inverse_cholesky": types.InverseFactor,
    "gptq": types.QuantizedWeight,
    "sparsegpt": types.SparseWeight,
    "wanda": types.Pruned,
    "moment_total": types.SecondMoment,
    "svd_patch": types.LowRank,
    "scaled_svd_patch": types.LowRank,
    "loftq": types.LoftQ,
    "eora": types.LowRank,
    "eora_published": types.LowRank,
    "eora_certified": types.Compensation,
    "stationarity": types.Stationarity,
    "quantize_adapter": types.QuantizedAdapter,
    "pool_modules": types.RankPool,
    "nest_patch": types.LowRank,
    "dora_gradient": types.DoraGradient,
    "dora_merge": types.DoraMerged,
    "dvora_factors": types.LowRank,
    "dvora_gradient": types.DvoraGradient,
    "decomposition_change": types.DecompositionChange,
    "dora_to_lora": types.LoraRefit,
    "rotate_block": types.DecoderBlock,
    "rotate_ends": types.DecoderEnds,
    "outlier_measures": types.OutlierMeasures,
    "quantize_activations": types.QuantizedActivations,
    "activation_clip": types.ActivationClip,
    "fit_chords": types.Table,
    "fit_segments": types.Table,
    "round_table": types.Table,
    "integer_table": types.IntegerTable,
    "table_gradient": types.TableGradient,
    "verify_table": types.TableReport,
    "logit_loss": types.LossGradient,
    "token_loss": types.LossGradient,
    "feature_loss": types.LossGradient,
    "score_loss": types.LossGradient,
    "attention_map_loss": types.LossGradient,
    "attention_range": types.TokenRange,
    "attention_norms": types.AttentionNorms,
    "power_eigenvalues": types.Eigenvalues,
}


class ConformanceFailure(AssertionError):
    """A backend does not keep a clause."""


class NotApplicable(Exception):
    """The backend lacks what this example needs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one check."""

    check: Check
    status: Status
    margin: float | None  # largest observed ÷ allowed; None when nothing was compared
    note: str
    error: BaseException | None = None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


@dataclass
class Kit:
    """One backend under one check.

    Attributes:
        backend: the object from ``lowbit.load``.
        examples: how many inputs are drawn per check.
        shrink: whether a failing input is made small before it is reported.
        seed: None draws the same examples in every run; a number draws others.
        sink: called with the outcome of every check.
    """

    backend: Any
    examples: int = PROFILES["quick"]
    shrink: bool = True
    seed: int | None = None
    sink: Callable[[Outcome], None] | None = None
    margin: float | None = None
    _last_call: str = ""
    _last_draw: dict[str, Any] = field(default_factory=dict)
    _tried: int = 0
    _refused: list[str] = field(default_factory=list)
    _absent: set[str] = field(default_factory=set)
    _partly: list[str] = field(default_factory=list)

    spec: ClassVar[Any] = reference  # the specification, float64 NumPy; options are checked by it, not by types

    # -- talking to the backend ----------------------------------------------------------------------------------------

    def has(self, *ops: str) -> bool:
        """Whether the backend has all of these operations; those it lacks are remembered for the note."""
        absent = [op for op in ops if not callable(getattr(self.backend, op, None))]
        self._absent.update(absent)
        return not absent

    def own(self, value: Any) -> Any:
        """NumPy arrays (also inside lists, tuples and named tuples) as arrays of the backend."""
        if _is_array(value):
            return self.backend.asarray(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.own(v) for v in value))
        if isinstance(value, list | tuple):
            return type(value)(self.own(v) for v in value)
        return value

    def numpy(self, value: Any) -> npt.NDArray[Any]:
        """Array of the backend → NumPy."""
        return np.asarray(self.backend.to_numpy(value))

    def raw(self, op: str, /, *arrays: Any, **options: Any) -> Any:
        """Call an operation with NumPy arguments and return its own arrays; the call is kept for a counter-example."""
        shown = [describe(a) for a in arrays] + [f"{k}={v!r}" for k, v in options.items()]
        self._last_call = f"{op}({', '.join(shown)})"
        return getattr(self.backend, op)(*(self.own(a) for a in arrays), **options)

    def call(self, op: str, /, *arrays: Any, **options: Any) -> Any:
        """Call an operation with NumPy arguments; results come back as NumPy, named tuples as those of the contract."""
        return self.convert(op, self.raw(op, *arrays, **options))

    def convert(self, op: str, result: Any) -> Any:
        """Result of ``op`` in NumPy, checked to have the fields of the contract."""
        if op == "quantize_adapter":
            parts = (self._named(types.QuantizedWeight, getattr(result, f, None), op) for f in ("B", "A"))
            return types.QuantizedAdapter(*parts)
        if op in _RESULTS:
            return self._named(_RESULTS[op], result, op)
        if op in ("moment_leaf", "moment_merge"):
            return tuple(self._named(types.MomentNode, node, op) for node in result)
        if op in (
            "objective",
            "optimum",
            "gradient_importance",
            "allocation_objective",
            "allocation_bound",
            "optimality_bound",
            "table_objective",
        ):
            return float(result)
        return self.numpy(result)

    def _named(self, kind: type[Any], value: Any, op: str) -> Any:
        fields: tuple[str, ...] = kind._fields
        absent = [f for f in fields if not hasattr(value, f)]
        if absent:
            self.fail(
                f"{op} returned {type(value).__name__} without the field(s) {', '.join(absent)} of {kind.__name__}"
            )
        return kind(*(self._plain(getattr(value, f)) for f in fields))

    def _plain(self, value: Any) -> Any:
        return value if value is None or isinstance(value, bool | int | float | str) else self.numpy(value)

    # -- precision -----------------------------------------------------------------------------------------------------

    def compute_dtype(self, dtype: npt.DTypeLike) -> str:
        """Precision that the backend promises for inputs of ``dtype``: its own, or float64 for float64 inputs."""
        return "float64" if np.dtype(dtype) == np.float64 else str(self.backend.compute_dtype)

    def u(self, *arrays: npt.NDArray[Any] | npt.DTypeLike, result: npt.NDArray[Any] | None = None) -> float:
        """Unit roundoff for inputs like these, not finer than that of ``result``, which is rounded once more."""
        dtypes = [a.dtype if isinstance(a, np.ndarray) else np.dtype(a) for a in arrays]
        widest = np.result_type(*dtypes)
        unit = compare.unit_roundoff(self.compute_dtype(widest))
        if result is not None and result.dtype.kind == "f":
            unit = max(unit, compare.unit_roundoff(result.dtype.name))
        return unit

    @staticmethod
    def tiny(n: int = 1) -> float:
        """Allowed underflow of n operations: results are float32 at least, so the float32 format sets it."""
        return compare.tiny(n, "float32")

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def check(self, comparison: compare.Comparison) -> None:
        """Record the margin of a comparison and fail if it is above 1."""
        __tracebackhide__ = True
        self.margin = max(self.margin or 0.0, comparison.margin)
        if not comparison.ok:
            self.fail(comparison.detail)

    def fail(self, message: str) -> NoReturn:
        """Fail the clause."""
        __tracebackhide__ = True
        self.margin = math.inf if self.margin is None or self.margin <= 1 else self.margin
        raise ConformanceFailure(message)

    def require(self, condition: bool | np.bool_, message: str) -> None:
        """Tier exact: a statement that must be true."""
        self.margin = max(self.margin or 0.0, 0.0)
        if not condition:
            self.fail(message)

    def refused(
        self,
        op: str,
        /,
        *arrays: Any,
        clauses: Sequence[str],
        words: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """The call must raise SpecError that cites one of ``clauses`` and contains ``words``."""
        try:
            result = self.raw(op, *arrays, **options)
        except SpecError as error:
            cited = str(getattr(error, "clause", ""))
            self.require(
                any(cited == c or base_id(cited) == c or cited[:1] == c for c in clauses),
                f"{op}: SpecError cites clause {cited!r}, expected {' or '.join(clauses)}: {error}",
            )
            lacking = [w for w in words if w not in str(error)]
            self.require(not lacking, f"{op}: the message {str(error)!r} does not say {', '.join(map(repr, lacking))}")
        except Unsupported:
            raise
        except Exception as error:
            self.fail(f"{op}: raised {type(error).__name__} ({error}) instead of SpecError")
        else:
            self.fail(f"{op}: answered {type(result).__name__} instead of raising SpecError")

    def note_refusal(self, reason: str) -> None:
        """Remember that a part of this check is unsupported; the rest goes on."""
        self._partly.append(reason)

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, check: Check) -> Outcome:
        """Run a check over its examples and hand the outcome to the sink.

        Raises:
            BaseException: what the check raised when it failed, with the shrunk input as a note.
        """
        __tracebackhide__ = True
        outcome = self.outcome(check)
        if self.sink is not None:
            self.sink(outcome)
        if outcome.error is not None:
            trace = outcome.error.__traceback__  # from the body of the test on: what is before it says nothing
            while trace is not None and trace.tb_frame.f_code is not check.body.__code__:
                trace = trace.tb_next
            raise outcome.error.with_traceback(trace)
        return outcome

    def outcome(self, check: Check) -> Outcome:
        """Run a check over its examples; failures are returned, not raised."""
        __tracebackhide__ = True
        self.margin, self._tried = None, 0
        self._last_call, self._last_draw = "", {}
        self._refused, self._absent, self._partly = [], set(), []
        if not self.has(*check.clause.ops):
            return Outcome(check, "not implemented", None, f"no {', '.join(sorted(self._absent))}")
        try:
            if check.inputs:
                self._draw(check)
            else:
                self._example(check, {})
        except Exception as error:
            return Outcome(check, "fail", self.margin, self._story(error), error)
        served = self._tried - len(self._refused)
        reasons = "; ".join(dict.fromkeys(self._refused))
        if not served and self._refused:
            return Outcome(check, "unsupported", None, reasons)
        notes = [f"unsupported in {len(self._refused)} of {self._tried}: {reasons}"] if self._refused else []
        notes += [f"unsupported: {reason}" for reason in dict.fromkeys(self._partly)]
        if self._absent:
            notes.append(f"without {', '.join(sorted(self._absent))}")
        if self.margin is None:
            return Outcome(check, "not implemented", None, "; ".join(notes) or "nothing to compare")
        return Outcome(check, "pass", self.margin, "; ".join(notes))

    def _draw(self, check: Check) -> None:
        __tracebackhide__ = True
        from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

        phases = [Phase.explicit, Phase.generate] + ([Phase.shrink] if self.shrink else [])

        @settings(
            max_examples=self.examples,
            derandomize=self.seed is None,
            database=None,
            deadline=None,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            print_blob=False,
        )
        @given(**check.inputs)
        def examples(**drawn: Any) -> None:
            __tracebackhide__ = True
            self._example(check, drawn)

        run = examples if self.seed is None else seed(self.seed)(examples)
        run()

    def _example(self, check: Check, drawn: dict[str, Any]) -> None:
        __tracebackhide__ = True
        self._tried += 1
        try:
            check.body(self, **drawn)
        except Unsupported as refusal:
            self._refused.append(refusal.reason)
        except Exception:
            self._last_draw = drawn
            raise

    def _story(self, error: BaseException) -> str:
        """The counter-example in hex, added to the error for whoever reads a traceback."""
        what = str(error) if isinstance(error, ConformanceFailure) else f"{type(error).__name__}: {error}"
        lines = [what]
        if self._last_draw:
            lines += ["falsified by:"] + [f"  {name} = {describe(value)}" for name, value in self._last_draw.items()]
        if self._last_call:
            lines.append(f"last call: {self._last_call}")
        error.__notes__ = lines[1:]
        return "\n".join(lines)

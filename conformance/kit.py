"""What a test of the kit holds in its hands: one backend under one check, and a place where margins are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from lowbit.reference.errors import Unsupported

from .clauses import Check
from .hexfloat import describe
from .subject import ConformanceFailure, Subject

__all__ = ["PROFILES", "Kit", "Outcome", "Status"]

Status: TypeAlias = Literal["pass", "fail", "unsupported", "not implemented"]

PROFILES = {"quick": 25, "full": 200, "stress": 2000}
"""Examples per check."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one check."""

    check: Check
    status: Status
    margin: float | None  # largest observed ÷ allowed; None when nothing was compared
    note: str
    error: BaseException | None = None


@dataclass
class Kit(Subject):
    """One backend under one check.

    Attributes:
        backend: the object from ``lowbit.load``.
        examples: how many inputs are drawn per check.
        shrink: whether a failing input is made small before it is reported.
        seed: None draws the same examples in every run; a number draws others.
        sink: called with the outcome of every check.
    """

    examples: int = PROFILES["quick"]
    shrink: bool = True
    seed: int | None = None
    sink: Callable[[Outcome], None] | None = None
    _last_draw: dict[str, Any] = field(default_factory=dict)
    _tried: int = 0
    _refused: list[str] = field(default_factory=list)

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
            status: Status = "unsupported" if self._partly else "not implemented"
            return Outcome(check, status, None, "; ".join(notes) or "nothing to compare")
        return Outcome(check, "pass", self.margin, "; ".join(notes))

    def _draw(self, check: Check) -> None:
        __tracebackhide__ = True
        from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
        from hypothesis.strategies import sampled_from

        inputs = {k: sampled_from(v) if isinstance(v, list | tuple) else v for k, v in check.inputs.items()}
        check = replace(check, inputs=inputs)
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

"""What the conformance kit says of PEFT's DoRA layers; docs/results/other-implementations.md tells it in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from lowbit.conformance.runner import run

from . import peft_dora
from .published import agree

VERDICT = {
    "D-1": "pass",
    "D-2": "pass",
    "D-2a": "pass",
    "D-3": "not implemented",
    "D-4": "pass",
    "D-4a": "fail",  # 0 / 0
    "D-5": "fail",  # an axis more for a single vector
    "D-5a": "fail",  # 0 / 0
    "D-6": "pass",
    "D-6a": "unsupported",
    "D-6b": "fail",  # 0 / 0
    "D-7": "pass",
    "D-7a": "fail",  # answers NaN
    "D-8": "not implemented",
    "D-9": "not implemented",
    "D-10": "not implemented",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Any]]:
    """Outcomes by clause."""
    found: dict[str, list[Any]] = {}
    for outcome in run(peft_dora, ["D"]):
        found.setdefault(outcome.check.clause.id, []).append(outcome)
    return found


def test_the_verdict(outcomes: dict[str, list[Any]]) -> None:
    said = {}
    for clause, results in outcomes.items():
        statuses = [r.status for r in results]
        said[clause] = "fail" if "fail" in statuses else statuses[0]
    assert said == VERDICT
    agree("PEFT 0.21.2, DoRA", [outcome for results in outcomes.values() for outcome in results])


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        ("D-4a", "the weight is not finite"),
        ("D-5", "output (linear) has shape (1,"),
        ("D-5a", "the output is not finite"),
        ("D-6b", "nan"),
        ("D-7a", "answered Tensor instead of raising SpecError"),
    ],
)
def test_the_reasons(outcomes: dict[str, list[Any]], clause: str, words: str) -> None:
    (failed,) = [o for o in outcomes[clause] if o.status == "fail"]
    assert words in failed.note


def test_inputs_with_two_axes_or_more_are_right() -> None:
    """The axis, and an output that a large bias rounds away before it is scaled, are all that D-5 finds."""

    def dora_forward(x: Any, dropped: Any, w: Any, bias: Any, *rest: Any, **options: Any) -> Any:
        if x.ndim > 1:
            return peft_dora.dora_forward(x, dropped, w, 0 * bias, *rest, **options) + bias
        return peft_dora.dora_forward(x[None], dropped[None], w, 0 * bias, *rest, **options)[0] + bias

    backend = SimpleNamespace(**{**vars(peft_dora), "dora_forward": dora_forward})
    assert [o.status for o in run(backend, ["D-5"]) if o.check.clause.id == "D-5"] == ["pass"]

"""The benchmark runner: a wrong result has no speed, and the gates notice wrong results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    """benchmarks/harness.py, which is no package."""
    import importlib

    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("harness")
    finally:
        sys.path.remove(str(FOLDER))


def good(_: dict[str, Any]) -> dict[str, float]:
    """A gate that finds nothing."""
    return {"error": 0.0}


def test_a_red_gate_gives_no_timing(harness: ModuleType) -> None:
    calls: list[str] = []

    def gate(results: dict[str, Any]) -> dict[str, float]:
        assert results["mine"] == results["published"], "mine is off by one"
        return {}

    case = harness.Case(
        name="sum",
        baseline="published",
        contenders={"published": lambda: calls.append("published") or 1, "mine": lambda: calls.append("mine") or 2},
        gate=gate,
    )
    record = harness.run_case(case)
    assert record["status"] == "failed"
    assert "mine is off by one" in record["message"]
    assert "contenders" not in record
    assert calls == ["published", "mine"]


def test_a_contender_that_raises_fails_the_case(harness: ModuleType) -> None:
    case = harness.Case(name="x", baseline="a", contenders={"a": lambda: 1 / 0}, gate=good)
    record = harness.run_case(case)
    assert record["status"] == "failed"
    assert record["message"].startswith("ZeroDivisionError")


def test_contenders_take_turns_and_the_order_rotates(harness: ModuleType) -> None:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    record = harness.run_case(harness.Case(name="x", baseline="a", contenders=contenders, gate=good, repeats=3))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert all(len(c["seconds"]) == 3 for c in record["contenders"].values())


def test_ratios_are_against_the_baseline_within_a_round(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that the contenders move: the second round finds a machine ten times slower, the ratio stays.
    clock, calls = [0.0], [0]

    def takes(seconds: float) -> None:
        clock[0] += seconds * (10 if 4 <= calls[0] < 6 else 1)
        calls[0] += 1

    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])
    contenders = {"slow": lambda: takes(6.0), "fast": lambda: takes(2.0)}
    record = harness.run_case(harness.Case(name="x", baseline="slow", contenders=contenders, gate=good, repeats=3))
    assert record["contenders"]["slow"]["speedup"] == 1.0
    fast = record["contenders"]["fast"]
    assert fast["speedup"] == pytest.approx(3.0)
    assert fast["seconds"] == pytest.approx([2.0, 20.0, 2.0])
    assert (fast["min"], fast["q1"], fast["median"], fast["q3"]) == pytest.approx((2.0, 2.0, 2.0, 11.0))


def test_peak_memory_sees_what_is_freed_again(harness: ModuleType) -> None:
    def hungry() -> float:
        return float(np.ones(8_000_000).sum())  # 61 MiB, gone when it returns

    assert harness.peak_extra_bytes(hungry) > 50 * 2**20
    assert harness.peak_extra_bytes(lambda: None) < 8 * 2**20


def test_a_case_needs_its_baseline(harness: ModuleType) -> None:
    with pytest.raises(ValueError, match="baseline"):
        harness.Case(name="x", baseline="a", contenders={"b": lambda: None}, gate=good)


def test_main_writes_the_record_and_says_which_topics_exist(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "from harness import Case\n"
        "def cases(*, quick):\n"
        "    gate = lambda results: {'error': 0.0}\n"
        "    yield Case('right', 'a', {'a': lambda: 1, 'b': lambda: 1}, gate, repeats=1, memory=True)\n"
        "    if not quick:\n"
        "        yield Case('wrong', 'a', {'a': lambda: 1}, lambda r: 1 / 0)\n"
    )
    (tmp_path / "toy.py").write_text(source, encoding="utf-8")
    (tmp_path / "helper.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    assert list(harness.topics()) == ["toy"]

    assert harness.main("toy", True, tmp_path / "out.json") == 0
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert record["schema"] == "lowbit.bench/1"
    assert record["machine"]["cores"] >= 1
    assert {"python", "numpy"} <= set(record["versions"])
    (case,) = record["cases"]
    assert case["contenders"]["b"]["peak_extra_bytes"] >= 0
    assert "gate green" in capsys.readouterr().out

    assert harness.main(None, False, None) == 1
    assert "GATE RED, not timed" in capsys.readouterr().out
    assert harness.main("nosuch", True, None) == 2
    assert "toy" in capsys.readouterr().err


def spoil(topic: str, result: Any) -> Any:
    """A result with one plausible mistake."""
    if topic == "quantize_pack":
        words, scale, zero = (np.array(np.asarray(x)) for x in result)
        words[0, 0] ^= 1  # one code of a million, off by one
        return words, scale, zero
    if topic == "codebook":
        y = np.array(np.asarray(result.float() if hasattr(result, "float") else result))
        y[:, : y.shape[1] // 8] *= 1.2
        return y
    if topic == "binary_coding":
        scale = np.array(np.asarray(result.scale))
        scale[:, :, 0] *= 1.02
        return result._replace(scale=scale)
    if topic == "lut":
        y = np.array(np.asarray(result))
        y[0] += 1  # one entry of a million
        return y
    if topic == "lut_search":
        population = np.array(np.asarray(result.population))
        population[0, 0] = np.nextafter(population[0, 0], np.inf)  # one gene, by its last bit
        return result._replace(population=population)
    if topic == "ranks":
        ranks = np.array(np.asarray(result))
        ranks[-1] -= 1
        return ranks
    if topic == "divergence":
        return result._replace(B=1.01 * np.asarray(result.B))
    if topic == "choices":
        choice = np.array(np.asarray(result.choice))
        choice[np.argmax(choice)] = 0  # fewer bytes than there are, for one module
        return result._replace(choice=choice)
    codes, weight = (np.array(np.asarray(x)) for x in result)
    weight[:, -1] += 0.02 * np.abs(weight).max()
    return codes, weight


@pytest.mark.parametrize(
    "topic",
    ["quantize_pack", "gptq", "binary_coding", "codebook", "ranks", "choices", "divergence", "lut", "lut_search"],
)
def test_gates_pass_what_is_right_and_stop_what_is_not(harness: ModuleType, topic: str) -> None:
    module = harness._load(topic, harness.topics()[topic])
    case = next(iter(module.cases(quick=True)))
    results = {name: call() for name, call in case.contenders.items()}
    figures = case.gate(results)
    assert all(np.isfinite(list(figures.values())))
    for name in results:
        if name != case.baseline:
            with pytest.raises(AssertionError, match=name):
                case.gate({**results, name: spoil(topic, results[name])})


def test_the_gate_of_dora_looks_at_gradients_and_at_bytes(harness: ModuleType) -> None:
    pytest.importorskip("peft")
    module = harness._load("dora", harness.topics()["dora"])
    case = next(iter(module.cases(quick=True)))
    results = {name: call() for name, call in case.contenders.items()}
    figures = case.gate(results)
    assert figures["lowbit DoRA: gradient error"] < 1e-5
    assert figures["lowbit DoRA: bytes kept"] < figures["PEFT DoRA: bytes kept"]
    off = [tuple(part * 1.0001 for part in layer) for layer in results["lowbit DoRA"]]
    with pytest.raises(AssertionError, match="lowbit DoRA: gradients are 1"):
        case.gate({**results, "lowbit DoRA": off})
    case.gate.args[0]["lowbit DoRA"] = case.gate.args[0]["PEFT DoRA"]  # a layer that keeps what theirs keeps
    with pytest.raises(AssertionError, match=r"lowbit DoRA: keeps 1\.\d+ times the bytes of LoRA"):
        case.gate(results)

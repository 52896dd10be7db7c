"""What a run is said to take, against what it takes; and the dry run, which takes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowbit.cli import run
from lowbit.compression import estimate as estimates
from lowbit.compression.arrays import Arrays
from lowbit.compression.estimate import Work, estimate
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.models.decoder import Decoder
from lowbit.models.taps import collect_inputs
from lowbit.recipes.compress import compress
from lowbit.recipes.inputs import _method
from lowbit.recipes.options import CompressOptions
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockStarted, Estimated, Event

Make = Callable[..., CompressOptions]
NOTHING = estimates._Rates(dict.fromkeys(("quantize", "errors", "compensate", "spectrum"), 0.0), *[0.0] * 6)


def ran(options: CompressOptions) -> tuple[Any, list[Event]]:
    """Result and events of a run."""
    events: list[Event] = []
    return compress(options, events.append), events


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {}),
        ("llama", {"symmetric": True, "group_size": None, "compensate": "none"}),
        ("llama", {"bits": 2, "dtype": "bfloat16", "rank": 3}),
        ("llama", {"bits": 16, "sparsity": "2:4"}),
        ("llama", {"adapter_bits": 4, "quantizer": "gptq"}),
        ("gpt2", {}),
        ("gemma3_text", {"bits": 4}),
        ("mixtral", {"symmetric": True, "backend": "torch"}),
        ("granitemoe", {"symmetric": True, "backend": "torch"}),
    ],
)
def test_the_size_is_that_of_the_result(options: Make, kind: str, changes: dict[str, Any]) -> None:
    result, events = ran(options(kind, **changes))
    (found,) = [event for event in events if isinstance(event, Estimated)]
    assert events.index(found) < next(i for i, event in enumerate(events) if isinstance(event, BlockStarted))
    totals = result.record["totals"]
    assert (found.bytes_given, found.bytes_shipped) == (totals["bytes_given"], totals["bytes_shipped"])
    assert found.seconds_low < found.seconds_high


def test_a_run_that_goes_on_says_it_no_more(options: Make) -> None:
    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        if isinstance(event, BlockStarted) and event.index == 1:
            raise Killed

    with pytest.raises(Killed):
        compress(options(), kill)
    assert not any(isinstance(event, Estimated) for event in ran(options())[1])


def test_a_dry_run_writes_nothing(options: Make, tmp_path: Path) -> None:
    result, events = ran(options(dry_run=True, evaluate=options().calibration, evaluate_tokens=48, evaluate_length=24))
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []
    assert [event.bytes_shipped for event in events if isinstance(event, Estimated)] == [result.record["bytes_shipped"]]
    assert result.record["schema"] == "lowbit.estimate/1"
    assert ran(options())[0].record["totals"]["bytes_shipped"] == result.record["bytes_shipped"]


def test_a_dry_run_leaves_a_finished_result_alone(options: Make, tmp_path: Path) -> None:
    compress(options())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    compress(options(dry_run=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert compress(options()).already_done  # no option of the result


@pytest.mark.parametrize(
    "changes, message",
    [({"rank": 64}, "rank 64 is above"), ({"group_size": 24}, "does not divide"), ({"samples": 10**6}, "tokens")],
)
def test_a_dry_run_refuses_what_the_run_refuses(options: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        compress(options(dry_run=True, **changes))


def test_the_command_prints_it_alone(options: Make, tmp_path: Path, capsys: Any) -> None:
    made = options()
    words = ["compress", made.model, "-o", str(tmp_path / "out"), "--calibration", made.calibration]
    words += ["--samples", "3", "--length", "24", "--group-size", "16", "--rank", "4", "--dry-run", "-q"]
    assert run([*words, "--json", str(tmp_path / "e.json")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("about ")
    assert said.out.count("\n") == 1
    record = json.loads((tmp_path / "e.json").read_text())
    assert set(record) == {
        *("schema", "model", "seconds_low", "seconds_high", "memory", "bytes_given", "bytes_shipped"),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


def opened(options: CompressOptions) -> tuple[Decoder, Any, Arrays]:
    decoder = Decoder(open_checkpoint(options.model))
    return decoder, _method(options, decoder.storage), Arrays.load("torch", device="cpu", threads=None)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "qwen3", "opt"])
def test_inputs_are_counted_as_the_run_finds_them(options: Make, kind: str) -> None:
    decoder, _, _ = opened(options(kind))
    with decoder.weights.outer(head=False):
        samples = decoder.embed([list(range(8))])
    found = []
    for index in range(len(decoder.inventory.blocks)):
        widths: dict[str, int] = {}
        with decoder.weights.block(index):
            collect_inputs(decoder, index, samples, lambda name, _, x, widths=widths: widths.update({name: x.shape[1]}))
            decoder.advance(index, samples)
        found += widths.values()
    assert sorted(estimates._inputs(decoder)) == sorted(found)


def test_time_counts_what_the_run_does(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, method, arrays = opened(options())
    values = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)  # linear layers of two blocks

    def seconds(work: Work, **rates: Any) -> float:
        monkeypatch.setattr(estimates, "_measure", lambda *_: NOTHING._replace(**rates))
        found = estimate(decoder, method, arrays, work, elapsed=0.0)
        assert found.seconds_high / found.seconds_low == pytest.approx(estimates._DOUBT**2)
        return (found.seconds_high * found.seconds_low) ** 0.5

    plain, evaluated = Work(3, 24, 0, 0), Work(3, 24, 2, 16)
    assert seconds(plain, product=1.0) == pytest.approx(values * 3 * 24 * 1.5)  # the last block is not run again
    assert seconds(evaluated, product=1.0) == pytest.approx(values * (3 * 24 * 1.5 + 3 * 2 * 16))  # three models
    assert seconds(evaluated, logit=1.0) == pytest.approx(264 * 3 * 2 * 16)
    assert seconds(plain, leaf=1.0) == pytest.approx(72 * 2 * (3 * 32**2 + 64**2))
    assert seconds(plain, attention=1.0) == pytest.approx(72 * 1.5 * 2 * 24)
    solve = NOTHING.solve | {"errors": 1.0}
    assert seconds(plain, solve=solve) == pytest.approx(2 * (96 * 32**2 + 128 * 32**2 + 32 * 64**2))


def test_memory_grows_with_what_is_held(options: Make) -> None:
    decoder, method, _ = opened(options())

    def memory(work: Work, **changes: Any) -> int:
        return estimates._memory(decoder, replace(method, **changes), work)

    few, many = memory(Work(100, 1000, 0, 0)), memory(Work(1100, 1000, 0, 0))
    assert many - few >= 10**6 * 32 * 4  # a million more hidden states of float32
    assert memory(Work(100, 1000, 1000, 1000)) - few >= 3 * 0.8 * 10**6 * 32 * 4


def test_tokens_come_from_the_text_that_the_run_takes(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Work] = []

    def kept(*given: Any, elapsed: float) -> Estimated:
        seen.append(given[-1])
        assert elapsed > 0
        return Estimated(1.0, 2.0, 3, 4, 5)

    monkeypatch.setattr("lowbit.recipes.compress.estimate", kept)
    text = options().calibration
    compress(options(dry_run=True))
    compress(options(dry_run=True, evaluate=text, evaluate_tokens=100, evaluate_length=16))
    assert seen == [Work(3, 24, 0, 0), Work(3, 24, 6, 16)]

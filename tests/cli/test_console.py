"""The progress display, fed with events by hand."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from lowbit.console import Console, byte_size, duration, jsonable, printable, save_record, share, table
from lowbit.runs.events import (
    BlockDone,
    BlockResumed,
    BlockStarted,
    Estimated,
    Evaluated,
    EvaluationProgress,
    Event,
    Finished,
    ModuleDone,
    Note,
    Started,
    Step,
)

EVENTS: list[Event] = [
    Step("hashing the files of model"),
    Started("a/model", "out", 2, 4, 8, 64, 1),
    BlockResumed(0, 2, 0.5),
    Note("something"),
    BlockStarted(1, 2),
    ModuleDone("q", 0.2, 0.1, 0.3),
    ModuleDone("k", 0.4, 0.2, 0.3),
    BlockDone(1, 2, 61.0, 812_000_000, 0.0),
    EvaluationProgress(0, 2, 0.1),
    EvaluationProgress(1, 2, 0.1),
    Evaluated("base", 25.4411, 100),
    Finished("out", 125.0, 900_000_000, 538_000_000, 200_000_000, False, 40.0),
]

PLAIN = """\
hashing the files of model
model: 4 linear layers in 2 blocks, calibrated on 8 x 64 tokens, 1 blocks already done
block   1/2  verified, continued from an earlier run
note: something
block   2/2  2 layers, error 30.0 % -> 15.0 %  1 min 01 s, peak 812 MB
evaluating 2 blocks
compressed in 1 min 25 s, evaluated in 40.0 s, peak 900 MB
"""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    with console.watch():
        for event in EVENTS:
            console.on_event(event)
    assert stream.getvalue() == PLAIN


def test_quiet_shows_nothing() -> None:
    stream = io.StringIO()
    console = Console(quiet=True, stream=stream)
    with console.watch():
        for event in EVENTS:
            console.on_event(event)
        console.say("nothing")
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_and_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    console = Console(stream=stream)
    assert console.live
    with console.watch():
        for event in EVENTS:
            console.on_event(event)
            if console._progress is not None:
                console._progress.refresh()
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "k  40.0 % → 20.0 %  0.30 s" in text
    assert "evaluation" in text
    for line in PLAIN.splitlines():
        assert line in text or line.startswith("evaluating")


HOSTILE = "\x1b[2J\x1b]0;x\x07[bold]\u202egnp.exe\r\udcff[/]"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_names_are_shown_and_not_obeyed(kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    stream = kind()
    console = Console(stream=stream)
    with console.watch():
        for event in (
            Started("m" + HOSTILE.replace("/", ""), "out", 1, 1, 1, 1, 0),
            Note(HOSTILE),
            BlockStarted(0, 1),
            ModuleDone(HOSTILE, 0.2, 0.1, 0.3),
        ):
            console.on_event(event)
            if console._progress is not None:
                console._progress.refresh()
    console.answer(HOSTILE)
    escaped = r"\x1b[2J\x1b]0;x\x07[bold]\u202egnp.exe\r\udcff[/]"
    assert printable(HOSTILE) == escaped
    assert printable("zwölf 漢字\n✓") == "zwölf 漢字\n✓"
    text = stream.getvalue()
    assert escaped in text
    assert not any(mark in text for mark in ("\x1b[2J", "\x1b]", "\x07", "\u202e", "\udcff"))
    assert capsys.readouterr().out == escaped + "\n"


def test_an_estimate_after_the_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((100.0, 113.0))
    monkeypatch.setattr("lowbit.console.time.perf_counter", lambda: next(now))
    stream = io.StringIO()
    console = Console(stream=stream)
    # 10 s for the statistics and 3 s for a twelfth of the weights: a block of 2 x 10 + 36 s, thirty of them
    for event in (BlockStarted(0, 30), *[ModuleDone("q", 0.05, None, 3.0, 1 / 12)] * 2, BlockStarted(1, 30)):
        console.on_event(event)
    assert stream.getvalue() == "about 28 min 00 s for 30 blocks, by the first layer\n"


@pytest.mark.parametrize(
    "seconds, text",
    [
        ((100, 225), "about 1.7 to 3.8 min"),
        ((40, 90), "about 40 s to 1.5 min"),
        ((4, 4.01), "about 4 s"),
        ((620, 1396), "about 10 to 25 min"),
        ((4000, 9000), "about 65 min to 2.5 h"),
        ((6000, 40_000), "about 1.7 to 10 h"),
    ],
)
def test_an_estimate_before_the_work(seconds: tuple[float, float], text: str) -> None:
    stream = io.StringIO()
    Console(stream=stream).on_event(Estimated(*seconds, 912_000_000, 269_030_016, 119_987_616))
    assert stream.getvalue() == f"{text} and 912 MB of memory; 120 MB in place of 269 MB\n"


def test_a_block_without_adapter_shows_one_error() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    for event in (BlockStarted(0, 3), ModuleDone("q", 0.05, None, 0.1), BlockDone(0, 3, 5.0, 10**6, 10.0)):
        console.on_event(event)
    assert stream.getvalue() == "block   1/3  1 layers, error 5.00 %  5.00 s, peak 1 MB, 10.0 s left\n"


def test_numbers_for_people() -> None:
    assert [byte_size(n) for n in (0, 999, 1500, 999_900, 54_321_000, 2.5e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "1000 kB",
        "54.3 MB",
        "2.5 GB",
    ]
    assert [duration(s) for s in (0.004, 9.999, 59.9, 60, 3599, 3600, 9000)] == [
        "0.00 s",
        "10.0 s",
        "59.9 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "2 h 30 min",
    ]
    assert [share(x) for x in (None, 0.2311, 0.0821, 0.00312)] == ["-", "23.1 %", "8.21 %", "0.312 %"]


def test_tables_align() -> None:
    assert table(("model", "size"), [("base", "538 MB"), ("x", "1 B")]) == (
        "model    size\n-----  ------\nbase   538 MB\nx         1 B"
    )


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    record = {"a": math.inf, "b": (1, 2.5), "c": Path("x"), "d": {"e": math.nan}, "f": True}
    assert jsonable(record) == {"a": None, "b": [1, 2.5], "c": "x", "d": {"e": None}, "f": True}
    save_record(tmp_path / "deep" / "r.json", record)
    assert json.loads((tmp_path / "deep" / "r.json").read_text()) == jsonable(record)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.json"]

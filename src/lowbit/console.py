"""What a person sees while a recipe works: a live bar on a terminal, one plain line per block elsewhere, or nothing.

Everything is drawn from events; the console computes nothing that a result would need. Progress goes to standard
error, so that a command's answer can be piped.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

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
from lowbit.runs.files import json_bytes, write_through

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = [
    "Console",
    "byte_size",
    "complain",
    "duration",
    "estimated",
    "jsonable",
    "printable",
    "save_record",
    "share",
    "show",
    "size_change",
]


def printable(text: str) -> str:
    """The text with all that a terminal would obey or hide written as an escape: ``\\x1b``, ``\\u202e``; lines stay.

    Names of files, tensors and models come from others: what they hold is shown and never carried out.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def show(text: str, stream: TextIO | None = None) -> None:
    """What a command was run for: standard output, or where it goes instead."""
    print(printable(text), file=stream or sys.stdout, flush=True)


def complain(text: str) -> None:
    """What went wrong: standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def size_change(before: int, after: int) -> str:
    """How much smaller, or larger, something became."""
    return f"{before / after:.2f} times smaller" if after <= before else f"{after / before:.2f} times larger"


def byte_size(value: float) -> str:
    """Bytes in powers of ten: ``538 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 999.5 * scale else f"{value / scale:.0f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 05 s`` or ``2 h 10 min``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def share(value: float | None) -> str:
    """A ratio in percent with three digits: ``23.1 %``."""
    if value is None:
        return "-"
    digits = 1 if abs(value) >= 0.0995 else 2 if abs(value) >= 0.00995 else 3
    return f"{100 * value:.{digits}f} %"


def jsonable(value: Any) -> Any:
    """The same value with NaN and infinities as null, paths as text and tuples as lists: strict JSON."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def save_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as strict JSON where a person said, see :func:`~lowbit.runs.files.write_through`.

    Raises:
        RecipeError: the system refuses.
    """
    write_through(path, json_bytes(jsonable(record)))


class Console:
    """Shows the events of one command.

    Args:
        quiet: show nothing but answers.
        stream: where progress goes; standard error unless a test wants it.
        answers: where answers go; standard output if not said.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, answers: TextIO | None = None) -> None:
        self.quiet = quiet
        self.answers = answers
        self.stream = stream or sys.stderr
        self.live = not quiet and self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._errors: list[tuple[float, float | None]] = []
        self._evaluating = False
        self._left = ""
        self._began: float | None = None  # the first block, until its first layer is done
        self._blocks = 0  # from that one on

    def say(self, text: str) -> None:
        """One line of progress; nothing when quiet."""
        if self.quiet:
            return
        if self._progress is not None:
            self._progress.console.print(printable(text), markup=False, highlight=False)
        else:
            print(printable(text), file=self.stream, flush=True)

    def answer(self, text: str) -> None:
        """What the command was run for: also when quiet."""
        show(text, self.answers)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Console]:
        """A live display while the block runs, on a terminal."""
        if not self.live:
            yield self
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        progress = Progress(
            TextColumn("{task.fields[what]:<10}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="cyan", markup=False),
            TextColumn("{task.description}", markup=False),
            console=RichConsole(file=self.stream),
            transient=True,
        )
        with progress:
            self._progress = progress
            try:
                yield self
            finally:
                self._progress, self._task = None, None

    def on_event(self, event: Event) -> None:
        """Show one event; unknown kinds are passed over, so that recipes may add some."""
        if self.quiet:
            return
        match event:
            case Started():
                self._started(event)
            case Note():
                self.say(f"note: {event.message}")
            case Step():
                self.say(event.what)
            case Estimated():
                self.say(estimated(event))
            case BlockStarted():
                if not self._blocks:
                    self._began, self._blocks = time.perf_counter(), event.total - event.index
                self._errors = []
                self._bar("blocks", event.total, event.index, left=self._left, text="statistics")
            case ModuleDone():
                self._module_done(event)
            case BlockResumed():
                self.say(f"block {event.index + 1:>3}/{event.total}  verified, continued from an earlier run")
                self._bar("blocks", event.total, event.index + 1)
            case BlockDone():
                self._block_done(event)
            case EvaluationProgress():
                self._evaluation_progress(event)
            case Evaluated():
                self._evaluating = False  # the number belongs to the answer
            case Finished():
                self._finished(event)

    # ---- events --------------------------------------------------------------------------------------------------

    def _bar(self, what: str, total: int, done: int, *, left: str = "", text: str = "") -> None:
        if self._progress is None:
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=total, what=what, left="")
        self._progress.update(self._task, total=total, completed=done, what=what, left=left, description=text)

    def _started(self, event: Started) -> None:
        again = f", {event.resumed_blocks} blocks already done" if event.resumed_blocks else ""
        self.say(
            f"{Path(event.model).name}: {event.modules} linear layers in {event.blocks} blocks, "
            f"calibrated on {event.samples} x {event.length} tokens{again}"
        )
        self._bar("blocks", event.blocks, event.resumed_blocks)

    def _module_done(self, event: ModuleDone) -> None:
        self._errors.append((event.before, event.after))
        if self._began is not None and event.share:
            # A block is run twice, before and after its layers, which take what their weights suggest.
            so_far = time.perf_counter() - self._began
            block = 2 * (so_far - event.seconds) + event.seconds / event.share
            self.say(
                f"about {duration(max(so_far, self._blocks * block))} for {self._blocks} blocks, by the first layer"
            )
            self._began = None
        if self._progress is not None and self._task is not None:
            arrow = "" if event.after is None else f" → {share(event.after)}"
            text = f"{printable(event.name)}  {share(event.before)}{arrow}  {duration(event.seconds)}"
            self._progress.update(self._task, description=text)

    def _block_done(self, event: BlockDone) -> None:
        before = math.fsum(b for b, _ in self._errors) / max(1, len(self._errors))
        known = [a for _, a in self._errors if a is not None]
        after = f" -> {share(math.fsum(known) / len(known))}" if known else ""
        self._left = "" if event.seconds_left is None else f"{duration(event.seconds_left)} left"
        solved = f"{len(self._errors)} layers, error {share(before)}{after}  " if self._errors else ""
        self.say(
            f"block {event.index + 1:>3}/{event.total}  {solved}{duration(event.seconds)}, peak "
            + byte_size(event.peak_memory)
            + (f", {self._left}" if self._left and event.index + 1 < event.total else "")
        )
        self._bar("blocks", event.total, event.index + 1, left=self._left)

    def _evaluation_progress(self, event: EvaluationProgress) -> None:
        if not self._evaluating:
            self._evaluating = True
            self._task = None if self._progress is None else self._new_task(event.total)
            if self._progress is None:
                self.say(f"evaluating {event.total} blocks")
        self._bar("evaluation", event.total, event.index + 1)

    def _new_task(self, total: int) -> TaskID:
        assert self._progress is not None
        return self._progress.add_task("", total=total, what="evaluation", left="")

    def _finished(self, event: Finished) -> None:
        if event.already_done:
            self.say(f"{event.out} is finished already: nothing to compute")
            return
        measured = f", evaluated in {duration(event.evaluation)}" if event.evaluation else ""
        self.say(
            f"compressed in {duration(event.seconds - event.evaluation)}{measured}, peak {byte_size(event.peak_memory)}"
        )


def estimated(event: Estimated) -> str:
    """``about 2 to 4 min, 0.9 GB of memory; 120 MB in place of 269 MB``, before any of it."""
    low, high = round_duration(event.seconds_low), round_duration(event.seconds_high)
    if low == high:
        took = high
    else:
        same = low.partition(" ")[2] == high.partition(" ")[2]
        took = f"{low.partition(' ')[0] if same else low} to {high}"
    return (
        f"about {took} and {byte_size(event.memory)} of memory; {byte_size(event.bytes_shipped)} in place of "
        f"{byte_size(event.bytes_given)}"
    )


def round_duration(seconds: float) -> str:
    """With the digits that an estimate has: ``40 s``, ``12 min``, ``3 h``."""
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 1.5 * length or unit == "s":
            value = seconds / length
            return f"{value:.2g} {unit}" if value < 9.95 else f"{max(10, 5 * round(value / 5))} {unit}"
    raise AssertionError("unreachable")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under a header, the first left-aligned, the others right-aligned."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *map(line, cells[1:])])

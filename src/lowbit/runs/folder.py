"""The life of an output directory: begun, continued, finished; refused when it is anything else.

======================================  ==================================================
on disk                                 means
======================================  ==================================================
nothing, or an empty directory          a run can begin
``.lowbit/run.json``, the plan          a run was begun: the same plan continues it
the last files, no ``run.json``         a run was finished: the same plan finds it done
anything else                           somebody else's files: left alone
======================================  ==================================================

``run.json`` is the first file written and the first removed after the last file is in place, so a crash at any moment
leaves one of these states. Everything in ``.lowbit`` is removed in the end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .files import make_folder, remove_tree, sweep, write_json
from .journal import Journal
from .lock import Lock
from .plan import plan_differences

__all__ = ["RunFolder"]


class RunFolder:
    """One run's output directory.

    Attributes:
        out: the directory.
        work: its folder ``.lowbit``, for what a finished run does not keep.

    Args:
        out: the directory.
        record: name of the file that tells all about a finished run; it holds the parts of its plan.
        last: name of the file that is written last.
    """

    def __init__(self, out: Path, *, record: str, last: str) -> None:
        self.out = out
        self.work = out / ".lowbit"
        self._plan = self.work / "run.json"
        self._record = out / record
        self._last = out / last

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Exclusive use of the directory, made if need be; if nothing was begun in it, nothing is left behind.

        Raises:
            RecipeError: it cannot be made, or another process holds it.
        """
        fresh = not self.out.exists()
        make_folder(self.out)
        with Lock(self.work / "lock", owner_of=self.out):
            try:
                yield
            except BaseException:
                if not self._plan.exists():
                    remove_tree(self.work)
                    if fresh:
                        with contextlib.suppress(OSError):
                            self.out.rmdir()
                raise

    def finished(self) -> bool:
        """Whether an earlier run has finished.

        Raises:
            RecipeError: the directory holds files, but no run.
        """
        begun = self._plan.exists()
        finished = self._record.is_file() and self._last.is_file() and not begun
        strangers = [path.name for path in self.out.iterdir() if path != self.work]
        if strangers and not finished and not begun:
            raise RecipeError(
                f"{self.out} is not empty (it holds {sorted(strangers)[0]}) and holds no run of lowbit: "
                "choose an empty or new directory"
            )
        return finished

    def begin(self, plan: Mapping[str, Any]) -> Journal:
        """Begin a run, or continue an unfinished one of the same plan; returns what it has finished so far.

        Raises:
            RecipeError: the unfinished run has another plan.
        """
        if self._plan.exists():
            before = _read(self._plan)
            advice = "repeat the old command to continue it, or choose another output directory"
            self._refuse("an unfinished run", before, plan, advice)
        else:
            write_json(self._plan, plan)
        for folder in (self.out, self.work):
            sweep(folder)
        return Journal(self.work / "journal.jsonl")

    def reuse(self, plan: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
        """The record of a finished run, if ``parts`` of its plan are those of ``plan``.

        Raises:
            RecipeError: they are not.
        """
        record = _read(self._record)
        before, now = ({part: source.get(part) for part in parts} for source in (record, plan))
        self._refuse("a finished run", before, now, "choose another output directory")
        remove_tree(self.work)
        return record

    def _refuse(self, run: str, before: Mapping[str, Any], now: Mapping[str, Any], advice: str) -> None:
        if changed := plan_differences(before, now):
            lines = "\n  ".join([f"{self.out} holds {run} with other settings:", *changed])
            raise RecipeError(f"{lines}\n{advice}")

    def complete(self) -> None:
        """Every file is in place; a crash before the plan is gone leaves it, and the same command comes back here."""
        self._plan.unlink()
        remove_tree(self.work)


def _read(path: Path) -> dict[str, Any]:
    """A file of the run that says what it is."""
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"not an object but {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RecipeError(f"{path}: damaged ({reason}); choose another output directory, or remove this one") from error
    return found

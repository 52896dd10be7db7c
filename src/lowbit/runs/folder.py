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
leaves one of these states. Everything in ``.lowbit`` is removed in the end. What a run wrote stands with its digests in
``SHA256SUMS``, which ``sha256sum -c`` reads too: on disk, with all that it names, before the last file is.

A run that was refused on the way cannot be continued into what a corrected command asks for: ``.lowbit/refused`` says
so, and another plan begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .files import digest, make_folder, remove_tree, sweep, sync_folder, write_bytes, write_json, writing
from .journal import Journal
from .lock import holding
from .plan import advice, plan_differences

__all__ = ["SUMS", "RunFolder"]

SUMS = "SHA256SUMS"


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
        self._journal = self.work / "journal.jsonl"
        self._refused = self.work / "refused"
        self._record = out / record
        self._last = out / last
        self._begun = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Exclusive use of the directory, made if need be; if nothing was begun in it, nothing is left behind.

        Raises:
            RecipeError: it cannot be made, another process holds it, or its folder for work is elsewhere.
        """
        fresh = not self.out.exists()
        make_folder(self.out)
        self._refuse_strange(self.work)
        with holding(self.work, owner_of=self.out):
            try:
                yield
            except BaseException as error:
                if not self._plan.exists():
                    remove_tree(self.work)
                    if fresh:
                        with contextlib.suppress(OSError):
                            self.out.rmdir()
                elif self._begun and isinstance(error, RecipeError) and not isinstance(error.__cause__, OSError):
                    with contextlib.suppress(RecipeError):
                        write_bytes(self._refused, b"")
                raise

    def _refuse_strange(self, path: Path) -> None:
        if path.is_symlink() or not (path.is_dir() or path.is_file() or not path.exists()):
            raise RecipeError(f"{path} is no file or folder of its own, but a link, a pipe or a device: remove it")

    def finished(self) -> bool:
        """Whether an earlier run has finished.

        Raises:
            RecipeError: the directory holds files, but no run; or links among those of a run.
        """
        begun = self._plan.exists()
        finished = all((self.out / name).is_file() for name in (self._record, self._last, SUMS)) and not begun
        strangers = [path.name for path in self.out.iterdir() if path != self.work]
        if strangers and not finished and not begun:
            raise RecipeError(
                f"{self.out} is not empty (it holds {sorted(strangers)[0]}) and holds no run of lowbit: "
                "choose an empty or new directory"
            )
        for path in self.out.rglob("*"):
            self._refuse_strange(path)
        return finished

    def begin(self, plan: Mapping[str, Any]) -> Journal:
        """Begin a run, or continue an unfinished one of the same plan; returns what it has finished so far.

        Raises:
            RecipeError: the unfinished run has another plan, and was not refused.
        """
        before = _read(self._plan) if self._plan.exists() else None
        if before != plan:
            if before is not None and not self._refused.exists():
                self._refuse("an unfinished run", before, plan, advice(before, plan))
            with writing(self.out):
                for name in (name for line in Journal(self._journal).lines for name in line.get("files", {})):
                    (self.out / name).unlink(missing_ok=True)
                self._journal.unlink(missing_ok=True)
                for inner in (path for path in self.work.iterdir() if path.is_dir()):
                    remove_tree(inner)  # what the other plan had made on its way
            write_json(self._plan, plan)
        with writing(self.out):
            self._refused.unlink(missing_ok=True)
            self._last.unlink(missing_ok=True)  # of a run that was stopped between its last file and the end
            sync_folder(self.out)
            for folder in (self.out, self.work):
                sweep(folder)
        self._begun = True
        return Journal(self._journal)

    def reuse(self, plan: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
        """The record of a finished run, if ``parts`` of its plan are those of ``plan`` and its files are what it wrote.

        Raises:
            RecipeError: they are not.
        """
        sums = _sums(self.out / SUMS)
        self._verify(sums, self._record.name)
        record = _read(self._record)
        before, now = ({part: source.get(part) for part in parts} for source in (record, plan))
        self._refuse("a finished run", before, now, "choose another output directory")
        self._verify(sums, *sums, self._last.name)
        remove_tree(self.work)
        return record

    def _verify(self, sums: Mapping[str, str], *names: str) -> None:
        for name in names:
            path = self.out / name
            if not path.is_file() or digest(path) != sums.get(name):
                raise RecipeError(
                    f"{self.out} holds a finished run whose file {name} is missing or was changed since ({SUMS} has "
                    "its digest): put it back, or choose another output directory"
                )

    def _refuse(self, run: str, before: Mapping[str, Any], now: Mapping[str, Any], way_out: str) -> None:
        if changed := plan_differences(before, now):
            lines = "\n  ".join([f"{self.out} holds {run} with other settings:", *changed])
            raise RecipeError(f"{lines}\n{way_out}")

    def complete(self, written: Mapping[str, str], last: bytes) -> None:
        """Every other file is in place: write their digests, then the last file; from then on the run is finished.

        A crash before the plan is gone leaves it, and the same command comes back here.

        Args:
            written: name → sha256 in hex of every file of the result but the last one.
            last: content of that.
        """
        sums = [*sorted(written.items()), (self._last.name, hashlib.sha256(last).hexdigest())]
        lines = "".join(f"{sha}  {name}\n" for name, sha in sums)
        write_bytes(self.out / SUMS, lines.encode(), scratch=self.work)
        write_bytes(self._last, last, scratch=self.work)
        with writing(self._plan):
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


def _sums(path: Path) -> dict[str, str]:
    """Name → sha256 in hex."""
    *lines, rest = path.read_text("utf-8", "replace").split("\n")
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    if rest or not all(found):
        raise RecipeError(
            f"{path} was changed since the run wrote it, and is no list of digests any more: choose another output "
            "directory, or remove this one"
        )
    return {line[2]: line[1] for line in found if line}

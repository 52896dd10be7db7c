"""Processes that compress and die, and what a disk holds after the power went.

Each run is a fork of one server that has imported everything. It can be killed, or lose its power, before the n-th call
that changes names or waits for the disk, and be killed at any other moment from outside.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions
from lowbit.runs.errors import RecipeError

REFUSED = 2  # exit code of a run that said what was wrong

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["lowbit.recipes.compress", "transformers.models.llama.modeling_llama", "lowbit.report"]
)
_BOUNDARIES = ("fsync", "replace", "unlink", "mkdir", "rmdir")
_EXT4_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, b"\x02\0\0\0"


class Death(NamedTuple):
    """How and where a run ends: before call ``at`` of :data:`_BOUNDARIES`, or when it is done."""

    at: int
    kind: Literal["kill", "cut", "shutdown"] = "kill"
    root: Path = Path()  # of the file system that loses its power; what is there before is on its disk
    seed: int = 0


def start(options: CompressOptions, death: Death | None = None) -> tuple[Any, Any]:
    """A child that compresses, and its counter of calls of :data:`_BOUNDARIES`."""
    count = _CONTEXT.Value("i", 0)
    child = _CONTEXT.Process(target=_work, args=(asdict(options), death, count))
    child.start()
    return child, count


def kill(child: Any) -> int:
    """Exit code of a child that is killed now, unless it has ended."""
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return int(child.exitcode)


def run(options: CompressOptions, death: Death | None = None, *, after: float = 1200) -> int:
    """Exit code of a child that compresses; killed as ``death`` says, or ``after`` seconds."""
    child, _ = start(options, death)
    child.join(after)
    return kill(child)


def boundaries(options: CompressOptions) -> int:
    """Number of calls of :data:`_BOUNDARIES` in an undisturbed run."""
    child, count = start(options)
    child.join()
    assert child.exitcode == 0
    return int(count.value)


def _work(fields: dict[str, Any], death: Death | None, count: Any) -> None:
    import torch

    torch.set_num_threads(1)
    disk = Disk(death.root) if death is not None and death.kind == "cut" else None

    def counting(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            count.value += 1
            if death is not None and count.value == death.at:
                _die(death, disk)
            result = function(*args, **kwargs)
            if disk is not None and name == "fsync":
                disk.synced(args[0])
            return result

        return call

    for name in _BOUNDARIES:
        setattr(os, name, counting(name))
    try:
        compress(CompressOptions(**fields))
    except RecipeError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
    if death is not None:
        count.value = -(10**6)  # what losing power itself calls is no part of the run
        _die(death, disk)


def _die(death: Death, disk: Disk | None) -> None:
    if disk is not None:
        disk.cut(death.root.with_name("after the cut"), random.Random(death.seed))
    if death.kind == "shutdown":
        fcntl.ioctl(os.open(death.root, os.O_RDONLY), _EXT4_SHUTDOWN, _WITHOUT_LOG)
    os.kill(os.getpid(), signal.SIGKILL)


class Disk:
    """What a power cut leaves below ``root``: what fsync has put on disk, and of the rest what the draw says.

    A file's content is safe as it was at the last fsync of the file, a name as it was at the last fsync of its folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for path in (root, *root.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            self.synced(descriptor)
            os.close(descriptor)

    def synced(self, descriptor: int) -> None:
        """What an open file or folder holds now is on disk."""
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(descriptor)}
            for entry in os.scandir(descriptor):
                if entry.is_dir() and entry.inode() not in self._names:  # a name of nothing, until it is synced itself
                    self._names[entry.inode()] = {}
                    os.open(entry.name, os.O_RDONLY, dir_fd=descriptor)
        else:
            self._content[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        os.dup(descriptor)  # as long as one is open, no other file gets its number

    def cut(self, target: Path, draw: random.Random) -> None:
        """Make ``target`` what is left of ``root``: in half of all draws everything unsafe is lost."""
        luck = draw.choice((0.0, 0.5))
        self._folder(self._root.stat().st_ino, self._root, target, lambda: draw.random() < luck, draw)

    def _folder(
        self, number: int, live: Path | None, target: Path, lucky: Callable[[], bool], draw: random.Random
    ) -> None:
        target.mkdir()
        safe = self._names.get(number, {})
        now = {} if live is None else {entry.name: entry.inode() for entry in os.scandir(live)}
        for name in sorted(safe.keys() | now.keys()):
            found = now.get(name) if lucky() else safe.get(name)
            if found is None:
                continue
            here = live / name if live is not None and now.get(name) == found else None
            if found in self._names or (here is not None and here.is_dir()):
                self._folder(found, here, target / name, lucky, draw)
                continue
            content = self._content.get(found, b"")
            if here is not None and (new := here.read_bytes()) != content and lucky():
                content = new[: draw.randint(0, len(new))]
            (target / name).write_bytes(content)


def lose_power(root: Path) -> None:
    """Put what a cut left in the place of ``root``, after the process died."""
    shutil.rmtree(root)
    root.with_name("after the cut").rename(root)

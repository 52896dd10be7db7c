"""Killed, out of space or out of power at any moment: the same command finishes, and nobody can tell from the files.

A directory never counts as finished that is not: where ``config.json`` is, everything else is as it should be.
``make crash`` runs all cases, ``make test`` some.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from crash import REFUSED, Death, Disk, boundaries, kill, lose_power, run, start
from tiny_models import contents

from lowbit.recipes.options import CompressOptions, parse_options


@dataclass(frozen=True)
class Subject:
    """A tiny model and what an undisturbed run makes of it, with an adapter and perplexities."""

    make: Callable[[Path], CompressOptions]
    whole: dict[str, bytes]
    boundaries: int
    seconds: float

    def check(self, out: Path) -> None:
        """A directory that looks finished is; and whatever it is, the same command finishes it."""
        if (out / "config.json").exists():
            found = contents(out)
            assert {name: found.get(name) for name in self.whole} == self.whole
        assert run(self.make(out)) == 0
        assert contents(out) == self.whole


@pytest.fixture(scope="module")
def subjects(
    tiny: Callable[..., Path], text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Subject, Subject]:
    """An untied model by one setting; a tied one by a decision, with the statistics that it takes."""

    def subject(model: Path, **chosen: Any) -> Subject:
        def make(out: Path) -> CompressOptions:
            settings = {"samples": 2, "length": 16, "group_size": 16, "backend": "reference", **chosen}
            evaluation = {"evaluate": str(text), "evaluate_tokens": 32, "evaluate_length": 16}
            return parse_options(
                CompressOptions, model=str(model), out=out, calibration=str(text), **settings, **evaluation
            )

        out = tmp_path_factory.mktemp("whole") / "out"
        count = boundaries(make(out))
        whole = contents(out)
        shutil.rmtree(out)
        started = time.monotonic()  # of a second run: the first waits for the server to import everything
        assert run(make(out)) == 0
        seconds = time.monotonic() - started
        assert contents(out) == whole
        return Subject(make, whole, count, seconds)

    return subject(tiny(), rank=2, bits=3), subject(
        tiny(tie_word_embeddings=True), bits_per_weight=9.0, quantizer="rtn", clip_search=False
    )


def some(few: int, all_of_them: int) -> pytest.MarkDecorator:
    """A few cases in ``make test``, all in ``make crash``."""
    return pytest.mark.parametrize("cases", [few, pytest.param(all_of_them, marks=pytest.mark.slow)])


@some(8, 200)
def test_kills(subjects: tuple[Subject, Subject], tmp_path: Path, cases: int) -> None:
    """Before calls spread over the whole run, and at random moments; every fourth directory is killed twice."""
    draw = random.Random(cases)
    died = 0
    for case in range(cases):
        subject, out = subjects[case // 2 % 2], tmp_path / str(case)
        for _ in range(2 if case % 4 == 0 else 1):
            if case % 2:
                code = run(subject.make(out), after=draw.uniform(0.2, 1.0) * subject.seconds)
            else:
                code = run(subject.make(out), Death(1 + case * subject.boundaries // cases))
            assert code in (0, -signal.SIGKILL)
            died += code != 0
        subject.check(out)
        shutil.rmtree(out)
    assert died > cases / 2


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_killed_again_and_again(subjects: tuple[Subject, Subject], tmp_path: Path, backend: str) -> None:
    """One directory, killed ever later: every attempt continues where the last one was stopped."""

    def make(out: Path) -> CompressOptions:
        return replace(subjects[1].make(out), backend=backend)

    assert run(make(tmp_path / "whole")) == 0
    out = tmp_path / "out"
    for at in range(5, subjects[1].boundaries, 12):
        assert run(make(out), Death(at)) in (0, -signal.SIGKILL)
    assert run(make(out)) == 0
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills_during_one_run_of_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2-135M, one directory: twenty kills at random moments from the first block to the last, then completion."""

    def make(out: Path) -> CompressOptions:
        return CompressOptions(model=str(smollm2), out=out, bits=4, samples=2, length=256, spectrum=False)

    started = time.monotonic()
    assert run(make(tmp_path / "whole")) == 0
    block = (time.monotonic() - started) / 30
    draw = random.Random(20)
    out = tmp_path / "out"
    for shards in sorted(draw.randint(0, 30) for _ in range(20)):
        child, _ = start(make(out))
        while child.is_alive() and len(list(out.glob("model-*.safetensors"))) < shards:
            time.sleep(0.01)
        child.join(draw.uniform(0, block))
        assert kill(child) == -signal.SIGKILL
        assert not (out / "config.json").exists()
    assert run(make(out)) == 0
    assert contents(out) == contents(tmp_path / "whole")


@some(8, 40)
def test_power_cuts(subjects: tuple[Subject, Subject], tmp_path: Path, cases: int) -> None:
    """Before calls spread over the whole run, and after its end: what the disk was not told is lost, or half of it."""
    for case in range(cases):
        subject, root = subjects[case % 2], tmp_path / str(case)
        root.mkdir()
        at = 1 + case * subject.boundaries // (cases - 2)
        out = root / "new" / "out"
        assert run(subject.make(out), Death(at, "cut", root, seed=case)) == -signal.SIGKILL
        lose_power(root)
        if at > subject.boundaries:
            assert (out / "config.json").exists()
        subject.check(out)
        shutil.rmtree(root)


@some(8, 100)
def test_flipped_bits(subjects: tuple[Subject, Subject], tmp_path: Path, cases: int) -> None:
    """One bit of one file of a stopped run, or of a finished one: made again or refused, never believed."""
    draw = random.Random(cases)
    stopped, finished = tmp_path / "stopped", tmp_path / "finished"
    subject = subjects[0]
    assert run(subject.make(stopped), Death(subject.boundaries * 3 // 4)) == -signal.SIGKILL
    assert run(subject.make(finished)) == 0
    for case in range(cases):
        out = shutil.copytree((stopped, finished)[case % 2], tmp_path / "out")
        path = draw.choice([path for path in sorted(out.rglob("*")) if path.is_file() and path.stat().st_size])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        code = run(subject.make(out))
        assert code == REFUSED if case % 2 else code in (0, REFUSED), path
        assert code or contents(out) == subject.whole, path
        shutil.rmtree(out)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """``mount(words)``: a mounted file system; skips where that is not allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mounted(*words: str) -> Path:
        done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a file system is not allowed here: {done.stderr.strip()}")
        return folder

    yield mounted
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@some(8, 60)
def test_full_disks(subjects: tuple[Subject, Subject], mount: Callable[..., Path], cases: int) -> None:
    """Of every size up to one that suffices; then there is more space."""
    refused = 0
    for case in range(cases):
        subject = subjects[case % 2]
        needed = sum(map(len, subject.whole.values()))
        folder = mount("-t", "tmpfs", "-o", f"size={4096 + case * needed * 5 // (4 * cases)}", "tmpfs")
        code = run(subject.make(folder / "out"))
        assert code in (0, REFUSED)
        refused += code != 0
        if code:
            assert not (folder / "out" / "config.json").exists()
            assert not list(folder.rglob("*.part"))
        subprocess.run(["mount", "-o", f"remount,size={4 * needed}", str(folder)], check=True)
        subject.check(folder / "out")
        subprocess.run(["umount", str(folder)], check=True)
    assert refused > cases / 2


@some(2, 40)
def test_power_cuts_of_a_real_file_system(
    subjects: tuple[Subject, Subject], mount: Callable[..., Path], tmp_path: Path, cases: int
) -> None:
    """ext4 on an image, shut down without its log: it keeps what it has written by itself, and loses the rest."""
    image = tmp_path / "image"
    for case in range(cases):
        subject = subjects[case % 2]
        with image.open("wb") as file:
            file.truncate(16 << 20)
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is missing")
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        words = ("-o", "loop,commit=1000", str(image))
        folder = mount(*words)
        at = 1 + case * subject.boundaries // (cases - 1)
        assert run(subject.make(folder / "new" / "out"), Death(at, "shutdown", folder)) == -signal.SIGKILL
        subprocess.run(["umount", str(folder)], check=True)
        subject.check(mount(*words) / "new" / "out")
        subprocess.run(["umount", str(folder)], check=True)


def test_a_cut_forgets_what_the_disk_was_not_told(tmp_path: Path) -> None:
    """The model of a disk: contents wait for fsync of their file, names for fsync of their folder."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    disk = Disk(root)

    def sync(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        disk.synced(descriptor)
        os.close(descriptor)

    (root / "content without name").write_bytes(b"whole")
    sync(root / "content without name")
    (root / "old").write_bytes(b"changed")
    disk.cut(tmp_path / "early", random.Random(1))
    (root / "name without content").write_bytes(b"lost")
    (root / "folder").mkdir()
    sync(root)
    (root / "folder").rmdir()
    disk.cut(tmp_path / "late", random.Random(1))
    assert contents(tmp_path / "early") == {"old": b"old"}
    assert contents(tmp_path / "late") == {
        "content without name": b"whole",
        "name without content": b"",
        "old": b"old",
    }
    assert not list((tmp_path / "late" / "folder").iterdir())

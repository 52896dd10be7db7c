"""Killed at any moment, the same command finishes the work, and nobody can tell from the files."""

from __future__ import annotations

import builtins
import errno
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_models import contents

from lowbit.models import machine
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions
from lowbit.runs import files, journal
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockDone, BlockResumed, BlockStarted, Event, Finished, Started

Make = Callable[..., CompressOptions]

# One server process imports everything once; each run is a fork of it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["lowbit.recipes.compress", "transformers.models.llama.modeling_llama", "lowbit.report"]
)


def _work(fields: dict[str, Any], die_at: int | None) -> None:
    """Compress in a process of its own; ``die_at`` kills it at that call of fsync or rename, as a power cut would."""
    import torch

    torch.set_num_threads(1)
    if die_at is not None:
        calls = 0

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        os.fsync = counting(os.fsync)
        os.replace = counting(os.replace)
    compress(CompressOptions(**fields))


def run(options: CompressOptions, *, die_at: int | None = None, after: float | None = None) -> int:
    """Exit code of a child that compresses; killed after ``after`` seconds."""
    child = _CONTEXT.Process(target=_work, args=(asdict(options), die_at))
    child.start()
    if after is not None:
        child.join(after)
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
    child.join(1200)
    assert child.exitcode is not None
    return child.exitcode


@pytest.fixture
def small(options: Make, text: Path) -> Callable[..., CompressOptions]:
    """Two blocks, evaluated too, so that a kill can also fall behind the blocks."""

    def make(out: Path, backend: str = "reference") -> CompressOptions:
        return options(out=out, evaluate=str(text), evaluate_tokens=48, evaluate_length=24, backend=backend)

    return make


def test_killed_at_every_kind_of_write(small: Callable[..., CompressOptions], tmp_path: Path) -> None:
    assert run(small(tmp_path / "whole")) == 0
    whole = contents(tmp_path / "whole")
    died = 0
    for die_at in (1, 2, 4, 7, 9, 12, 15, 18, 21, 24, 27, 30):
        out = tmp_path / f"killed {die_at}"
        code = run(small(out), die_at=die_at)
        assert code in (0, -signal.SIGKILL)
        if code:
            died += 1
            assert not (out / "config.json").exists()  # a partial directory never looks loadable
            assert run(small(out)) == 0
        assert contents(out) == whole, die_at
    assert died >= 10


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_killed_again_and_again(small: Callable[..., CompressOptions], tmp_path: Path, backend: str) -> None:
    """One directory, killed ever later: every attempt continues where the last one was stopped."""
    assert run(small(tmp_path / "whole", backend)) == 0
    out = tmp_path / "out"
    for die_at in range(3, 60, 3):
        if run(small(out, backend), die_at=die_at) == 0:
            break
    assert run(small(out, backend)) == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_killed_at_random_moments(small: Callable[..., CompressOptions], tmp_path: Path) -> None:
    _random_kills(small, tmp_path, 4)


@pytest.mark.slow
def test_killed_twenty_times(small: Callable[..., CompressOptions], tmp_path: Path) -> None:
    _random_kills(small, tmp_path, 20)


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
        child = _CONTEXT.Process(target=_work, args=(asdict(make(out)), None))
        child.start()
        while child.is_alive() and len(list(out.glob("model-*.safetensors"))) < shards:
            time.sleep(0.01)
        child.join(draw.uniform(0, block))
        assert child.is_alive()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not (out / "config.json").exists()
    assert run(make(out)) == 0
    assert contents(out) == contents(tmp_path / "whole")


def _random_kills(small: Callable[..., CompressOptions], tmp_path: Path, kills: int) -> None:
    assert run(small(tmp_path / "whole")) == 0
    started = time.monotonic()  # of a second run: the first child waits for the server of children to import torch
    assert run(small(tmp_path / "timed")) == 0
    duration = time.monotonic() - started
    draw = random.Random(20)
    out = tmp_path / "out"
    done = 0
    for _ in range(20 * kills):
        if run(small(out), after=draw.uniform(0.1, 1.0) * duration) == 0 and (out / "config.json").exists():
            if done >= kills:
                break
            assert contents(out) == contents(tmp_path / "whole")
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        else:
            done += 1
        if done >= kills:
            break
    assert done >= kills
    assert run(small(out)) == 0
    assert contents(out) == contents(tmp_path / "whole")


class _Boom(Exception):
    pass


def interrupt_after(blocks: int) -> Callable[[Event], None]:
    """An observer that stops the run when block ``blocks`` begins."""

    def observe(event: Event) -> None:
        if isinstance(event, BlockStarted) and event.index == blocks:
            raise _Boom

    return observe


def test_resume_repeats_no_finished_block(options: Make) -> None:
    with pytest.raises(_Boom):
        compress(options(), interrupt_after(1))
    events: list[Event] = []
    compress(options(), events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert started.resumed_blocks == 1
    assert [event.index for event in events if isinstance(event, BlockResumed)] == [0]
    assert [event.index for event in events if isinstance(event, BlockStarted)] == [1]


def test_changed_options_are_refused_with_the_fields(options: Make) -> None:
    with pytest.raises(_Boom):
        compress(options(), interrupt_after(1))
    with pytest.raises(RecipeError) as caught:
        compress(options(bits=4, rank=8))
    assert str(caught.value) == (
        f"{options().out} holds an unfinished run with other settings:\n"
        "  bits: 3 -> 4\n"
        "  rank: 4 -> 8\n"
        "repeat the old command to continue it, or choose another output directory"
    )
    compress(options())


def test_changed_text_is_refused(options: Make, tmp_path: Path) -> None:
    with pytest.raises(_Boom):
        compress(options(), interrupt_after(1))
    other = tmp_path / "text.txt"
    other.write_text("something else entirely " * 100)
    with pytest.raises(RecipeError, match=r"\n  calibration: other content\n"):
        compress(options(calibration=str(other)))


def test_other_thread_count_is_refused(options: Make) -> None:
    with pytest.raises(_Boom):
        compress(options(threads=1), interrupt_after(1))
    with pytest.raises(RecipeError, match=r"\n  machine\.threads: 1 -> 2\n.* continue it with --threads 1, or "):
        compress(options(threads=2))


@pytest.mark.parametrize("part", ["vector_units", "blas"])
def test_another_processor_is_refused(options: Make, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    with pytest.raises(_Boom):
        compress(options(), interrupt_after(1))
    if part == "blas":
        monkeypatch.setattr(machine, "threadpool_info", lambda: [{"user_api": "blas", "internal_api": "other"}])
    else:
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(RecipeError, match=rf"\n  machine\.{part}: .*\n.* on a processor of the same kind, or "):
        compress(options())


def test_threads_of_numpy_are_those_that_were_asked_for() -> None:
    with machine.thread_count(1) as count:
        blas = {pool["num_threads"] for pool in machine.threadpool_info() if pool["user_api"] == "blas"}
        assert (count, blas) == (1, {1})


def test_a_tied_model_stopped_behind_its_last_block(options: Make, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing is left to compute but the record, which says the same as an undisturbed one."""
    model = str(tiny(tie_word_embeddings=True))
    whole = compress(options(model=model, out=tmp_path / "whole"))
    stored = {name: tensor.numel() for name, tensor in load_file(Path(model) / "model.safetensors").items()}
    assert whole.record["model"]["parameters"] == sum(stored.values())

    def stop(event: Event) -> None:
        if isinstance(event, BlockDone) and event.index + 1 == event.total:
            raise _Boom

    with pytest.raises(_Boom):
        compress(options(model=model), stop)
    assert contents(compress(options(model=model)).out) == contents(whole.out)


def test_finished_directory_is_recognised(options: Make) -> None:
    first = compress(options())
    before = contents(first.out)
    events: list[Event] = []
    again = compress(options(), events.append)
    assert again.already_done
    assert again.record == first.record
    assert contents(first.out) == before
    assert [type(event) for event in events] == [Finished]
    with pytest.raises(RecipeError, match=r"holds a finished run with other settings:\n  bits: 3 -> 2\n"):
        compress(options(bits=2))
    assert contents(first.out) == before


def test_damaged_block_is_made_again(options: Make, tmp_path: Path) -> None:
    whole = contents(compress(options(out=tmp_path / "whole")).out)
    with pytest.raises(_Boom):
        compress(options(), interrupt_after(1))
    shard = options().out / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert contents(compress(options()).out) == whole


def test_torn_journal_line_is_dropped(options: Make, tmp_path: Path) -> None:
    whole = contents(compress(options(out=tmp_path / "whole")).out)
    with pytest.raises(_Boom):
        compress(options(), interrupt_after(1))
    journal = options().out / ".lowbit" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert contents(compress(options()).out) == whole


def test_second_process_is_told_who_holds_the_directory(options: Make) -> None:
    seen: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, BlockStarted) and event.index == 1:
            with pytest.raises(RecipeError) as caught:
                compress(options())
            seen.append(str(caught.value))
            lock = json.loads((options().out / ".lowbit" / "holder.json").read_text())
            seen.append(lock["start"])

    compress(options(), observe)
    assert seen[0] == (f"{options().out} is in use by process {os.getpid()} on {socket.gethostname()} since {seen[1]}")


def test_lock_outlives_no_process(options: Make, tmp_path: Path) -> None:
    """A lock file whose owner died is no lock."""
    lock = options().out / ".lowbit" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "start": "long ago"}))
    assert not compress(options()).already_done


class _FullDisk:
    """``open`` on a disk with room for ``room`` more bytes."""

    def __init__(self, room: int, under: Path) -> None:
        self.room = room
        self.under = under
        self.open = builtins.open

    def __call__(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        handle = self.open(file, mode, *args, **kwargs)
        if set(mode) & set("wax+") and isinstance(file, (str, os.PathLike)) and self.under in Path(file).parents:
            write = handle.write
            disk = self

            class Handle:
                def __getattr__(self, name: str) -> Any:
                    return getattr(handle, name)

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: object) -> None:
                    handle.close()

                def write(self, data: Any) -> int:
                    size = memoryview(data).nbytes
                    if size > disk.room:
                        write(bytes(memoryview(data).cast("B")[: disk.room]))
                        disk.room = 0
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    disk.room -= size
                    return int(write(data))

            return Handle()
        return handle


@pytest.mark.parametrize("room", [100, 4_000, 40_000, 60_000, 72_000])
def test_full_disk(options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    whole = contents(compress(options(out=tmp_path / "whole")).out)
    out = options().out
    with monkeypatch.context() as patch:
        disk = _FullDisk(room, out)
        for module in (files, journal):
            patch.setattr(module, "open", disk, raising=False)
        with pytest.raises(RecipeError) as caught:
            compress(options())
    message = str(caught.value)
    assert message.startswith(f"no space left while writing {out}/")
    assert message.endswith(": free some space and run the same command again, finished blocks are kept")
    assert not list(out.rglob("*.part"))
    assert not (out / "config.json").exists()
    assert contents(compress(options()).out) == whole


def test_unwritable_output(options: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    with pytest.raises(RecipeError) as caught:
        compress(options(out=out))
    assert str(caught.value) == f"cannot write {out}: Not a directory"


def test_strangers_are_left_alone(options: Make) -> None:
    out = options().out
    out.mkdir()
    (out / "thesis.txt").write_text("do not overwrite")
    with pytest.raises(RecipeError) as caught:
        compress(options())
    assert str(caught.value) == (
        f"{out} is not empty (it holds thesis.txt) and holds no run of lowbit: choose an empty or new directory"
    )
    assert contents(out) == {"thesis.txt": b"do not overwrite"}

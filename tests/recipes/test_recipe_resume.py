"""Interrupted, the same command finishes the work, and nobody can tell from the files; another one is refused."""

from __future__ import annotations

import builtins
import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_models import contents

from lowbit.models import machine
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions
from lowbit.runs import files
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import BlockDone, BlockResumed, BlockStarted, Event, Finished, Started, Step

Make = Callable[..., CompressOptions]


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
    assert [type(event) for event in events] == [Step, Step, Finished]
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
        patch.setattr(files, "open", disk, raising=False)
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

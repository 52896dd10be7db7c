"""Locks, atomic files and the journal."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowbit.formats.safetensors_file import TensorSource, write_tensors
from lowbit.runs.errors import RecipeError
from lowbit.runs.files import digest, replacing, sweep, write_bytes, write_json
from lowbit.runs.folder import RunFolder
from lowbit.runs.journal import Journal
from lowbit.runs.lock import holding
from lowbit.runs.plan import differences


def test_tensors_are_written_as_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.arange(5, dtype=torch.int64),
        "c": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "d": torch.tensor(3.0),
        "e": torch.zeros(0, 4, dtype=torch.float16),
        "f": torch.arange(12, dtype=torch.int32).reshape(3, 4).T,
    }
    path = tmp_path / "x.safetensors"
    sha = write_tensors(path, {name: TensorSource.of(tensor) for name, tensor in tensors.items()})
    assert sha == digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    again = tmp_path / "y.safetensors"
    write_tensors(again, {name: TensorSource.of(tensors[name]) for name in reversed(tensors)})
    assert again.read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_bytes(path, b"old")

    def fail() -> torch.Tensor:
        raise RuntimeError("no values")

    with pytest.raises(RuntimeError, match="no values"):
        write_tensors(path, {"a": TensorSource(torch.float32, (2,), fail)})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_journal_survives_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append({"step": 0})
    journal.append({"step": 1})
    path.write_bytes(path.read_bytes() + b'{"step": 2')
    again = Journal(path)
    assert again.lines == [{"step": 0}, {"step": 1}]
    again.append({"step": 2})
    assert Journal(path).lines == [{"step": 0}, {"step": 1}, {"step": 2}]
    again.keep(1)
    assert Journal(path).lines == again.lines == [{"step": 0}]


def test_lock(tmp_path: Path) -> None:
    def hold() -> contextlib.AbstractContextManager[None]:
        return holding(tmp_path / "work", owner_of=tmp_path)

    with hold(), pytest.raises(RecipeError, match="is in use by process"):
        hold().__enter__()
    with hold():
        pass


def test_differences() -> None:
    assert differences({"a": 1, "b": [1], "c": None}, {"a": 2, "b": [1], "d": "x"}) == [
        "a: 1 -> 2",
        "c: null -> absent",
        'd: absent -> "x"',
    ]


def test_the_sweep_knows_what_a_killed_write_leaves(tmp_path: Path) -> None:
    for name in ("a.safetensors", "kept.part"):
        write_bytes(tmp_path / name, b"whole")
    with replacing(tmp_path / "b.json") as file:
        left = Path(file.name)
        (tmp_path / left.name.replace(".b.", ".c.")).write_bytes(b"of another process")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.json", "kept.part"]


def test_the_life_of_an_output_directory(tmp_path: Path) -> None:
    """Nothing, begun, continued, finished; each state knows what it is."""
    plan = {"options": {"bits": 3}, "inputs": {"a": "1"}}
    folder = RunFolder(tmp_path / "deep" / "out", record="record.json", last="last.json")
    with contextlib.suppress(KeyboardInterrupt), folder.held():
        assert not folder.finished()
        raise KeyboardInterrupt
    assert not folder.out.exists()  # nothing was begun: nothing is left
    with contextlib.suppress(KeyboardInterrupt), folder.held():
        folder.begin(plan).append({"step": 0})
        (folder.work / ".x.1.part").write_text("half of a file")
        raise KeyboardInterrupt
    with folder.held():
        assert not folder.finished()
        with pytest.raises(RecipeError, match=r"holds an unfinished run with other settings:\n  bits: 3 -> 4\nrepeat"):
            folder.begin(plan | {"options": {"bits": 4}})
        assert folder.begin(plan).lines == [{"step": 0}]
        assert sorted(path.name for path in folder.work.iterdir()) == [
            "holder.json",
            "journal.jsonl",
            "lock",
            "run.json",
        ]
        folder.complete({"record.json": write_json(folder.out / "record.json", plan)}, b"{}")
    with folder.held():
        assert folder.finished()
        assert folder.reuse(plan, ["options"]) == plan
    with folder.held(), pytest.raises(RecipeError, match=r"a finished run with other settings:\n  inputs\.a: "):
        folder.reuse(plan | {"inputs": {"a": "2"}}, ["options", "inputs"])


def test_the_journal_is_believed_as_far_as_its_files_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        journal.append({"step": number, "files": {f"{number}": write_bytes(tmp_path / f"{number}", b"content")}})
    assert journal.drop_unverified(tmp_path, str) is None
    (tmp_path / "1").write_bytes(b"changed")
    assert journal.drop_unverified(tmp_path, str) == "1"
    assert [line["step"] for line in Journal(tmp_path / "journal").lines] == [0]
    assert journal.drop_unverified(tmp_path, lambda number: f"not {number}") == "not 0"
    assert journal.lines == []

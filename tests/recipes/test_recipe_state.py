"""Locks, atomic files and the journal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowbit.formats.safetensors_file import TensorSource, write_tensors
from lowbit.runs import files
from lowbit.runs.errors import RecipeError
from lowbit.runs.files import digest, make_folder, replacing, sweep, write_bytes, write_json
from lowbit.runs.folder import SUMS, RunFolder
from lowbit.runs.journal import Journal
from lowbit.runs.lock import holding
from lowbit.runs.plan import advice, differences, plan_differences


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


def test_no_flipped_bit_of_a_journal_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for step in range(3):
        journal.append({"step": step, "measure": 0.1 * step, "files": {"ä": "0" * 64}})
    whole, lines = path.read_bytes(), journal.lines
    draw = random.Random(0)
    for _ in range(500):
        bit = draw.randrange(8 * len(whole))
        path.write_bytes(bytes(byte ^ (1 << bit % 8 if place == bit // 8 else 0) for place, byte in enumerate(whole)))
        found = Journal(path).lines
        assert found == lines[: len(found)]
        assert len(found) < 3


def test_a_journal_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "journal").symlink_to(tmp_path / "victim")
    with pytest.raises(RecipeError, match="cannot write"):
        Journal(tmp_path / "journal").append({"step": 0})
    assert (tmp_path / "victim").read_bytes() == b""


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


def finished(tmp_path: Path) -> RunFolder:
    """A directory of a finished run with one file beside the record and the last one."""
    folder = RunFolder(tmp_path / "out", record="record.json", last="last.json")
    with folder.held():
        folder.begin({"options": {"bits": 3}})
        written = {"weights": write_bytes(folder.out / "weights", b"values")}
        written["record.json"] = write_json(folder.out / "record.json", {"options": {"bits": 3}})
        folder.complete(written, b"{}")
    return folder


def test_what_a_finished_run_wrote_can_be_checked_by_anybody(tmp_path: Path) -> None:
    out = finished(tmp_path).out
    told = subprocess.run(["sha256sum", "-c", SUMS], cwd=out, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["record.json: OK", "weights: OK", "last.json: OK"]


@pytest.mark.parametrize("name", ["weights", "record.json", "last.json", SUMS])
def test_a_changed_file_of_a_finished_run_is_named(tmp_path: Path, name: str) -> None:
    folder = finished(tmp_path)
    with (folder.out / name).open("r+b") as file:
        file.write(b"#")
    with folder.held(), pytest.raises(RecipeError, match="was changed since") as caught:
        folder.reuse({"options": {"bits": 3}}, ["options"])
    assert name in str(caught.value)


def test_a_missing_file_of_a_finished_run_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.out / "weights").unlink()
    with folder.held(), pytest.raises(RecipeError, match="file weights is missing"):
        folder.reuse({"options": {"bits": 3}}, ["options"])


@pytest.mark.parametrize("name", [".lowbit", "adapter", "weights", ".lowbit/journal.jsonl", ".lowbit/lock"])
def test_links_planted_in_an_output_directory_are_refused(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "out", record="record.json", last="last.json")
    with contextlib.suppress(KeyboardInterrupt), folder.held():
        folder.begin({"options": {}})
        raise KeyboardInterrupt
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = folder.out / name
    if place.is_dir():
        place.rename(elsewhere / "work")
        place.symlink_to(elsewhere / "work")
    else:
        place.unlink(missing_ok=True)
        place.symlink_to(elsewhere / "file")
        (elsewhere / "file").write_text("precious")
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"a link, a pipe or a device: remove it|cannot write"), folder.held():
        folder.finished()
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_a_planted_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", record="record.json", last="last.json")
    with contextlib.suppress(KeyboardInterrupt), folder.held():
        folder.begin({"options": {}})
        raise KeyboardInterrupt
    os.mkfifo(folder.work / "journal.jsonl")
    with pytest.raises(RecipeError, match=r"journal\.jsonl is no file or folder of its own"), folder.held():
        folder.finished()


@pytest.mark.parametrize("content", [b"\xff{", b"[1]", b"[]", b'{"machine": 3}', b"[" * 100_000, b"{}"])
def test_whatever_a_plan_on_disk_says_is_told_or_refused(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path / "out", record="record.json", last="last.json")
    with contextlib.suppress(KeyboardInterrupt), folder.held():
        folder.begin({"machine": {"threads": 1}})
        raise KeyboardInterrupt
    (folder.work / "run.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"run\.json: damaged .*remove this one|with other settings"), folder.held():
        folder.begin({"machine": {"threads": 1}})


def test_a_refused_run_refuses_no_corrected_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", record="record.json", last="last.json")
    with contextlib.suppress(RecipeError), folder.held():
        journal = folder.begin({"options": {"samples": 1}})
        journal.append({"step": 0, "files": {"shard": write_bytes(folder.out / "shard", b"values")}})
        raise RecipeError("take more samples")
    again = RunFolder(folder.out, record="record.json", last="last.json")
    with contextlib.suppress(RecipeError), again.held():
        assert len(again.begin({"options": {"samples": 1}}).lines) == 1  # the old command still continues
        raise RecipeError("take more samples")
    with again.held():
        assert again.begin({"options": {"samples": 2}}).lines == []
        assert not (folder.out / "shard").exists()
    with again.held(), pytest.raises(RecipeError, match="an unfinished run with other settings"):
        again.begin({"options": {"samples": 1}})


def test_a_full_disk_is_no_refusal_of_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", record="record.json", last="last.json")
    with contextlib.suppress(RecipeError), folder.held():
        folder.begin({"options": {"bits": 3}})
        raise RecipeError("no space left") from OSError(28, "No space left on device")
    with folder.held(), pytest.raises(RecipeError, match="repeat the old command"):
        folder.begin({"options": {"bits": 4}})


def test_differences_show_no_hashes() -> None:
    plans = [{"inputs": {"config.json": c * 64}, "calibration": {"sha256": c * 64}} for c in "ab"]
    assert plan_differences(*plans) == ["calibration: other content", "inputs.config.json: other content"]
    assert plan_differences(plans[0], {"calibration": plans[0]["calibration"], "inputs": {}}) == [
        "inputs.config.json: present -> absent"
    ]


def test_what_the_last_digits_depend_on_has_its_own_way_out() -> None:
    before = {"machine": {"threads": 4, "vector_units": "AVX512"}, "versions": {"torch": "1"}}
    assert "continue it with --threads 4, or" in advice(
        before, {**before, "machine": {**before["machine"], "threads": 2}}
    )
    assert "on a processor of the same kind" in advice(
        before, {**before, "machine": {**before["machine"], "vector_units": "AVX2"}}
    )
    assert "with the same versions" in advice(before, {**before, "versions": {"torch": "2"}})
    assert advice(before, {**before, "options": {"bits": 3}}).startswith("repeat the old command")


def test_folders_are_on_disk_before_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"model": "caf\udce9"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"model": "caf\udce9"}

"""Where a person names a file, what stands there is written through; only a plain file is replaced."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lowbit.cli import run
from lowbit.console import save_record
from lowbit.runs.errors import RecipeError

from .conftest import compress_arguments

RECORD = {"a": 1}


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    for _ in range(2):  # to nothing, and to a file
        save_record(link, RECORD)
        assert link.is_symlink()
        assert json.loads(target.read_text()) == RECORD
        target.write_text("something longer than the record is " * 9)


def test_a_pipe_is_written_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    save_record(pipe, RECORD)
    reader.join(10)
    assert json.loads(read[0]) == RECORD
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_device_is_written_and_stays(tmp_path: Path) -> None:
    """As ``--json /dev/null`` of an administrator: a node of our own stands for it."""
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        device.open("wb").close()
    except PermissionError:
        pytest.skip("only an administrator makes devices that open")
    save_record(device, RECORD)
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null"]


def test_a_planted_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".r.json.{os.getpid()}.part").symlink_to(victim)
    save_record(tmp_path / "r.json", RECORD)
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "victim"]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Is a directory"):
        save_record(tmp_path, RECORD)


def test_a_dash_is_standard_output_and_the_record_has_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["schema"] == "lowbit.info/1"
    assert "specification" in err


def test_a_dash_of_compress_and_of_check(workplace: Path, compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {"evaluate": workplace / "text.txt", "evaluate_tokens": 256, "evaluate_length": 32}
    commands = {
        "lowbit.compress/1": compress_arguments(workplace, compressed.name, **evaluation),  # finished already
        "lowbit.check/1": ["check", str(compressed), "--for", "peft"],
    }
    for schema, command in commands.items():
        assert run([*command, "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["schema"] == schema


@pytest.mark.parametrize("form", ["vectors", "suite"])
def test_reports_of_a_conformance_run_go_to_a_pipe_or_a_dash(form: str) -> None:
    words = ["conform", "reference", "--clause", "Q-3", *(["--vectors-only"] if form == "vectors" else [])]
    for place in ("-", "/dev/stdout"):
        command = [sys.executable, "-m", "lowbit", *words, "--json", place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])[0]
        assert found["schema"] == "lowbit.conformance/1"
        if place == "-":
            json.loads(done.stdout)  # nothing else

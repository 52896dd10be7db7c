"""What a user's type checker sees of an editable installation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.skipif(not (ROOT / "src/lowbit/reference").is_symlink(), reason="a checkout without symbolic links")
def test_the_line_of_the_install_page_shows_the_types(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (command,) = re.findall(
        r"^\.venv/bin/python -c '(.*lowbit-sources.*)'$", (ROOT / "docs/guides/install.md").read_text(), re.M
    )
    subprocess.run([python, "-c", command], cwd=ROOT, check=True)
    (tmp_path / "code.py").write_text(
        "import lowbit\n"
        "from lowbit.reference import fit_grid\n"
        "from lowbit.recipes.options import CompressOptions\n"
        "reveal_type(lowbit.load)\n"
        "reveal_type(fit_grid)\n"
        "reveal_type(CompressOptions)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", python, "code.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "type[CompressOptions]" in run.stdout
    assert "(name: str, /" in run.stdout
    assert "bits: int" in run.stdout

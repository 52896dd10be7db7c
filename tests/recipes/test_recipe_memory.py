"""A model larger than the memory that a job may use."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.formats.checkpoint import open_checkpoint
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "make_checkpoint.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_what_transformers_loads(script: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    total = script.write_checkpoint(tmp_path / "model", gigabytes=0.006, hidden=256, vocabulary=264)
    files = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert 6e6 <= total <= files
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert sum(parameter.numel() * 4 for parameter in model.parameters()) == total
    checkpoint = open_checkpoint(tmp_path / "model")
    assert set(checkpoint.names()) == set(model.state_dict())
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(checkpoint.read(name), model.state_dict()[name])
    again = script.write_checkpoint(tmp_path / "again", gigabytes=0.006, hidden=256, vocabulary=264)
    assert again == total
    assert open_checkpoint(tmp_path / "again").fingerprint() == checkpoint.fingerprint()
    result = compress(
        CompressOptions(model=str(tmp_path / "model"), out=tmp_path / "out", bits=4, rank=8, samples=2, length=64)
    )
    assert result.record["model"]["blocks"] == model.config.num_hidden_layers


def test_sizes_that_do_not_fit_are_refused(script: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hidden must be a multiple of 256 and vocabulary at least 264"):
        script.write_checkpoint(tmp_path, hidden=100)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["bits=4", "bits_per_weight=5.0, quantizer='rtn', clip_search=False"])
def test_peak_memory_on_three_gigabytes(script: Any, tmp_path: Path, chosen: str) -> None:
    """Under 2 GB plus the largest block, measured by the kernel."""
    script.write_checkpoint(tmp_path / "model", gigabytes=3.0)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    block = sum(
        4 * torch.Size(shape).numel()
        for _, shape in script.block_shapes(config["hidden_size"], config["intermediate_size"], 32, 0)
    )
    code = (
        "import sys; from pathlib import Path; from lowbit.recipes.compress import compress;"
        "from lowbit.recipes.options import CompressOptions as O;"
        "compress(O(model=sys.argv[1], out=Path(sys.argv[2]), samples=2, length=1024, "
        f"{chosen}))"
    )
    run = subprocess.run(
        ["/usr/bin/time", "-v", sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        check=True,
    )
    match = re.search(r"Maximum resident set size \(kbytes\): (\d+)", run.stderr)
    assert match is not None
    assert int(match[1]) * 1024 < 2_000_000_000 + block

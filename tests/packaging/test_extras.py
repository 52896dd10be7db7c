"""Each extra alone, installed from the wheel into an empty environment: slow, `make test-extras`.

pip takes torch and the rest from wherever it is configured to, and its own cache if there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lowbit

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("LICENSE", "README.md", "accel", "conformance", "pyproject.toml", "reference", "src")
# What an extra is for, as a line that must work.
LINES = {
    "": "lowbit.load('reference').round_half_even([0.5])",
    "numba": "ops = lowbit.load('numba'); ops.round_half_even(ops.asarray([0.5]))",
    "torch": "ops = lowbit.load('torch'); ops.round_half_even(ops.asarray([0.5]))",
    "conformance": "from lowbit.conformance.runner import run; assert list(run(lowbit.load('reference'), ['R-1']))",
    "report": "import lowbit.report",
    "onnx": "import onnx",
    "hf": "import compressed_tensors, peft, transformers",
}
COMMANDS = {"conformance": ["lowbit", "conform", "reference", "--clause", "R"]}

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path) -> str:
    """Output of a command, which sees nothing of this environment and must succeed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["HF_HUB_OFFLINE"] = "1"
    run = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
    )  # fmt: skip
    assert run.returncode == 0, f"{' '.join(map(str, command))}: exit {run.returncode}\n{run.stdout}"
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        if path.is_dir():
            shutil.copytree(path, folder / "tree" / name, symlinks=True, ignore=ignored)
        else:
            (folder / "tree").mkdir(exist_ok=True)
            shutil.copy(path, folder / "tree" / name)
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "tree", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: these environments are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def install(folder: Path, wheel: Path, extra: str) -> Path:
    """The ``bin`` of a new environment with lowbit and one extra."""
    venv.create(folder / "env", with_pip=True)
    scripts = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    wanted = f"lowbit[{extra}] @ {wheel.as_uri()}" if extra else f"lowbit @ {wheel.as_uri()}"
    pip = [scripts / "python", "-m", "pip"]
    call(*pip, "install", "-q", "-c", ROOT / "constraints.txt", wanted, cwd=folder)
    call(*pip, "check", cwd=folder)
    return scripts


def test_the_wheel_holds_every_file_of_the_four_folders_and_none_twice(wheel: Path) -> None:
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    assert len(names) == len(set(names))
    homes = {"lowbit/reference": "reference", "lowbit/accel": "accel", "lowbit/conformance": "conformance"}
    kept = (".py", ".typed", ".json", ".html", ".j2", ".css", ".js")
    wanted = set()
    for home, source in [*homes.items(), ("lowbit", "src/lowbit")]:
        for folder, _, files in os.walk(ROOT / source):
            inside = Path(folder).relative_to(ROOT / source)
            wanted |= {(Path(home) / inside / file).as_posix() for file in files if file.endswith(kept)}
    assert wanted <= set(names), sorted(wanted - set(names))[:20]


@pytest.mark.parametrize("extra", LINES, ids=lambda e: e or "bare")
def test_an_extra_alone_installs_and_answers(extra: str, wheel: Path, empty: Path) -> None:
    scripts = install(empty, wheel, extra)
    assert "compress" in call(scripts / "lowbit", "--help", cwd=empty)
    assert lowbit.__version__ in call(scripts / "lowbit", "--version", cwd=empty)
    call(scripts / "python", "-c", f"import lowbit; {LINES[extra]}", cwd=empty)
    if extra in COMMANDS:
        program, *words = COMMANDS[extra]
        call(scripts / program, *words, cwd=empty)
    if extra == "hf":
        loads_what_it_wrote(scripts, empty)


def loads_what_it_wrote(scripts: Path, folder: Path) -> None:
    """A tiny model, compressed by the command; transformers and PEFT load the result."""
    (folder / "make.py").write_text(
        textwrap.dedent(
            """
            import torch
            from tokenizers import Tokenizer, models, pre_tokenizers
            from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

            torch.manual_seed(0)
            size = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
            LlamaForCausalLM(LlamaConfig(vocab_size=96, num_key_value_heads=2, **size)).save_pretrained("model")
            words = {"<unk>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, 96)}
            raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
            raw.pre_tokenizer = pre_tokenizers.Whitespace()
            PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>").save_pretrained("model")
            open("text.txt", "w").write(" ".join(f"w{2 + i * i % 94}" for i in range(4000)))
            """
        )
    )
    (folder / "load.py").write_text(
        textwrap.dedent(
            """
            import torch
            from peft import PeftModel
            from transformers import AutoModelForCausalLM, CompressedTensorsConfig

            ids = torch.arange(2, 34)[None]
            config = CompressedTensorsConfig(dequantize=True)
            plain = AutoModelForCausalLM.from_pretrained("out", quantization_config=config)
            before = plain(ids).logits
            after = PeftModel.from_pretrained(plain, "out/adapter")(ids).logits
            assert torch.isfinite(after).all() and not torch.equal(before, after)
            """
        )
    )
    call(scripts / "python", "make.py", cwd=folder)
    sizes = ["--bits", "3", "--group-size", "32", "--rank", "4", "--samples", "4", "--length", "64"]
    call(scripts / "lowbit", "compress", "model", "-o", "out", "--calibration", "text.txt", *sizes, cwd=folder)
    call(scripts / "lowbit", "check", "out", "--for", "transformers,peft", cwd=folder)
    call(scripts / "python", "load.py", cwd=folder)

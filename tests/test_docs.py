"""The documentation is code: it builds without a warning, needs no network, and what it shows runs.

A comment before a fenced block says what to do with it (see CONTRIBUTING.md); Python blocks without one run in order,
in one namespace per page and in a folder of their own.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from lowbit import reference
from lowbit.conformance.clauses import CLAUSES, base_id, select
from lowbit.recipes.options import CompareOptions, CompressOptions, EvalOptions, option_table

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "docs" / "_tools"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHAPTER_PAGES = sorted((ROOT / "docs" / "chapters").glob("*.md"))
OTHERS = ROOT / "docs" / "results" / "other-implementations.md"
SHELL = ("sh", "bash", "shell", "console")

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```\s*$", re.DOTALL | re.MULTILINE
)
_MARK = re.compile(r"<!--\s*(?P<what>run|check|skip|file)(?::\s*(?P<value>[^>]*?))?\s*-->\s*\Z")
_SCRIPT_OR_STYLE = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]+)"|<link\b(?![^>]*rel="canonical")[^>]*\bhref="([^"]+)"'
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    body: str
    line: int
    mark: str  # "", "run", "check", "skip" or "file"
    value: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks with the mark that stands before each."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        indent = len(match["indent"])
        body = "\n".join(line[indent:] for line in match["body"].splitlines())
        line = text.count("\n", 0, match.start()) + 1
        what, value = (mark["what"], mark["value"] or "") if mark else ("", "")
        found.append(Block(match["language"], body, line, what, value))
    return found


def name_of(page: Path) -> str:
    """Short test id."""
    return str(page.relative_to(ROOT))


def environment() -> dict[str, str]:
    """The commands of this interpreter first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "NO_MKDOCS_2_WARNING": "1"}


@functools.cache
def help_of(subcommand: str) -> str:
    """What ``lowbit SUBCOMMAND --help`` prints, wide enough that no option is cut."""
    run = subprocess.run(
        [sys.executable, "-m", "lowbit", *subcommand.split(), "--help"],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"},
    )  # fmt: skip
    assert run.returncode == 0, f"lowbit {subcommand} --help: {run.stderr}"
    return run.stdout


def check_command(command: str) -> None:
    """A command of a page exists, with the options that the page gives it; nothing is executed."""
    words = command.split("#")[0].replace("\\\n", " ").split()
    if not words:
        return
    if words[0] == "lowbit":
        options = [word.split("=")[0] for word in words[2:] if re.match(r"--?[a-zA-Z]", word)]
        missing = [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(words[1]))]
        assert not missing, f"lowbit {words[1]} has no {', '.join(missing)}"
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"no such target in the Makefile: {command}"
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        asked = {extra for group in re.findall(r"\[([\w,]+)\]", command) for extra in group.split(",")}
        assert asked <= set(extras), f"no such extra: {asked - set(extras)}"
    else:
        assert words[0] in ("mkdocs", "python"), f"the tests do not know how to check {words[0]!r}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_a_page_is_run_checked_or_left_out_for_a_reason(page: Path) -> None:
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        if block.language in SHELL:
            assert block.mark, f"{where}: a shell block needs one of the marks run, check, skip, file"
        if block.mark in ("skip", "file"):
            assert block.value, f"{where}: {block.mark} needs a value"
        assert block.language, f"{where}: a block without a language"


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" or b.mark == "run" for b in blocks(p))], ids=name_of
)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = ModuleType("page")
    before = set(sys.modules)
    try:
        for block in blocks(page):
            if block.mark == "file":
                (tmp_path / block.value).write_text(block.body + "\n", encoding="utf-8")
            elif block.mark == "run":
                run = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", block.body],
                    cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=300,
                )  # fmt: skip
                assert run.returncode == 0, f"line {block.line}: exit {run.returncode}\n{run.stdout}\n{run.stderr}"
            elif block.language == "python" and not block.mark:
                # Blank lines in front, so that a traceback points into the page.
                code = compile("\n" * block.line + block.body, str(page), "exec")
                exec(code, module.__dict__)
    finally:
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
                del sys.modules[name]


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.mark == "check" for b in blocks(p))], ids=name_of)
def test_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    for block in blocks(page):
        if block.mark == "check":
            for command in re.sub(r"\\\n", " ", block.body).splitlines():
                check_command(command)


# --- the specification and its pages ----------------------------------------------------------------------------------

_NUMBER = r"(?:[A-Z]|[0-9])\.[0-9]+"
_ID = re.compile(r"\b[A-Z]-[0-9]+[a-z]?\b")


def shown(page: Path) -> list[str]:
    """What a page takes from docstrings."""
    return re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def operations_of(page: Path) -> list[str]:
    """Operations of the specification that a page documents."""
    found = [name.rpartition(".") for name in shown(page)]
    return [name for module, _, name in found if module.startswith("lowbit.reference.") and name in reference.__all__]


def test_every_operation_is_documented_on_one_chapter_page() -> None:
    documented = [name for page in CHAPTER_PAGES for name in operations_of(page)]
    assert sorted(documented) == sorted(reference.__all__)


def test_every_module_is_documented() -> None:
    pytest.importorskip("torch")
    room = importlib.import_module("lowbit.nn")
    page = ROOT / "docs" / "guides" / "modules.md"
    assert {f"lowbit.nn.{name}" for name in room.__all__} == set(shown(page))
    assert all(f"`{name}`" in page.read_text(encoding="utf-8").split(":::")[0] for name in room.__all__)  # its tables


def test_whatever_a_file_of_the_specification_exports_is_on_a_page() -> None:
    """Sizes, presets and published variants too, which are no operations of a backend."""
    there = {name for page in CHAPTER_PAGES for name in shown(page)}
    files = {name.rpartition(".")[0] for name in there if name.startswith("lowbit.reference.")} - {"lowbit.reference"}
    assert len(files) > 15
    for file in sorted(files):
        home = importlib.import_module(file)
        names = getattr(home, "__all__", [])  # the results of operations share a file that exports nothing by name
        exported = {f"{file}.{name}" for name in names if not inspect.isclass(getattr(home, name))}
        assert exported <= there, sorted(exported - there)


def numbered(docstring: str) -> set[str]:
    """Equations that a docstring defines: a number closes their line."""
    ends = re.findall(rf"\({_NUMBER}\)(?:, \({_NUMBER}\))*$", docstring, re.MULTILINE)
    return {number for end in ends for number in re.findall(_NUMBER, end)}


def tagged(text: str) -> list[str]:
    r"""Equation numbers of a page: \tag{Q.1}, \tag{Q.1, Q.2} or a run, \tag{Q.1–Q.3}."""
    found = []
    for tag in re.findall(r"\\tag\{([^}]*)\}", text):
        for part in tag.split(", "):
            first, _, last = part.partition("–")
            letter, _, number = first.partition(".")
            stop = int(last.partition(".")[2]) if last else int(number)
            found += [f"{letter}.{n}" for n in range(int(number), stop + 1)]
    return found


@pytest.mark.parametrize("page", CHAPTER_PAGES, ids=name_of)
def test_equation_numbers_of_a_page_are_those_of_its_docstrings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    defined: set[str] = set()
    for name in shown(page):
        module, _, attribute = name.rpartition(".")
        if module.startswith("lowbit.reference.") and attribute.islower():
            home = importlib.import_module(module)
            defined |= numbered(inspect.getdoc(getattr(home, attribute)) or "") | numbered(home.__doc__ or "")
    tags = tagged(text)
    assert len(tags) == len(set(tags)), "a number stands at two equations"
    assert set(tags) <= defined
    letters = {number.split(".")[0] for number in defined}
    cited = {number for number in re.findall(rf"\(({_NUMBER})\)", text) if number.split(".")[0] in letters}
    assert cited <= defined


def test_equation_numbers_belong_to_one_chapter_each() -> None:
    home: dict[str, str] = {}
    for page in CHAPTER_PAGES:
        for number in tagged(page.read_text(encoding="utf-8")):
            assert home.setdefault(number, page.name) == page.name, number


def test_every_clause_has_its_text_on_the_page_of_its_chapter() -> None:
    """Its number, without the refinement at least, stands in a docstring there; and no docstring makes ids up."""
    pages = {name: page for page in CHAPTER_PAGES for name in operations_of(page)}
    of_chapter: dict[str, set[Path]] = {}
    for clause in CLAUSES.values():
        of_chapter.setdefault(clause.chapter, set()).update(pages[op] for op in clause.ops)
    cited = {page: set[str]() for page in CHAPTER_PAGES}
    for name, page in pages.items():
        ids = _ID.findall(inspect.getdoc(getattr(reference, name)) or "")
        assert set(ids) <= set(CLAUSES), name
        cited[page].update(ids)
    for clause in CLAUSES.values():
        if clause.ops:
            there = set().union(*(cited[page] for page in of_chapter[clause.chapter]))
            assert {clause.id, base_id(clause.id)} & there, clause.id


@pytest.mark.parametrize(
    "heading, clauses",
    [
        ("bitsandbytes", "N"), ("PEFT 0.21.2, LoftQ", "N-7"), ("PEFT 0.21.2, DoRA", "D"), ("SciPy", "H"),
        ("hadamard-transform", "H"), ("OFQ", "O-1"), ("OFQ", "O-2"), ("OFQ", "O-3"),
    ],
)  # fmt: skip
def test_other_implementations_are_judged_by_every_clause_of_the_chapter(heading: str, clauses: str) -> None:
    (section,) = [s for s in OTHERS.read_text(encoding="utf-8").split("\n## ") if s.startswith(heading)]
    rows = re.findall(r"^\| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", section, re.MULTILINE)[2:]
    assert {i for clause, _, _ in rows for i in _ID.findall(clause)} >= set(select([clauses]))
    for clause, verdict, reason in rows:
        assert re.search("pass|fail|unsupported|not implemented", verdict), clause
        assert reason, clause


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; building it strictly, without a warning, is the first test."""
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    assert "WARNING" not in output, output
    return folder


def test_the_site_needs_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        for match in _SCRIPT_OR_STYLE.finditer(page.read_text(encoding="utf-8")):
            target = match[1] or match[2]
            assert not re.match(r"(?:https?:)?//", target), f"{page.name} loads {target}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import\s+)['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_equation_is_rendered(site: Path) -> None:
    chapters = list((site / "chapters").glob("*.html"))
    assert len(chapters) >= 6
    assert sum(page.read_text(encoding="utf-8").count("<math ") for page in chapters) > 50
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, f"{page.name} holds an equation as TeX"
        assert not re.search(r"\\\(.*?\\\)", "".join(re.findall(r"<figcaption>.*?</figcaption>", text, re.DOTALL))), (
            page.name
        )


def test_equations_fit_into_their_column(site: Path) -> None:
    """By their symbols: a column of 50 em holds about eighty, fewer stand in fractions than beside each other."""
    for page in (site / "chapters").glob("*.html"):
        for equation in re.findall(r'<div class="equation">(.*?)</div>', page.read_text(encoding="utf-8"), re.DOTALL):
            for line in equation.split("</mtr>"):
                symbols = re.sub(r"\s", "", html.unescape(re.sub(r"<[^>]+>", "", line)))
                assert len(symbols) <= 76, f"{page.name}: break this line of an equation: {symbols}"


def test_options_of_the_python_calls_are_on_their_page(site: Path) -> None:
    page = (site / "guides" / "api.html").read_text(encoding="utf-8")
    for kind in (CompressOptions, EvalOptions, CompareOptions):
        for option in option_table(kind).values():
            meaning = html.escape(option.told.help.split("*")[0], quote=False)
            assert meaning in page, f"{kind.__name__}.{option.name}"


def test_every_page_is_reached_from_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            assert f'href="{page.relative_to(site)}"' in index or page == site / "index.html", page.name


def test_an_equation_that_cannot_be_converted_is_refused() -> None:
    spec = importlib.util.spec_from_file_location("docs_mathml", TOOLS / "mathml.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    to_mathml = module.to_mathml
    assert "<mfrac>" in to_mathml(r"\frac{a}{b}", display=False)
    for tex in (r"\nosuchcommand x", r"a & b", r"|x|"):
        with pytest.raises(ValueError):
            to_mathml(tex, display=True)


def test_docstrings_become_markdown() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "doctest", str(TOOLS / "docstrings.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_figures_are_what_the_specification_computes() -> None:
    run = subprocess.run(
        [sys.executable, str(TOOLS / "figures"), "--check"], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_topic_of_the_benchmarks_is_on_their_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    topics = importlib.import_module("harness").topics()
    page = (ROOT / "docs" / "guides" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(topics)


def test_sections_of_the_report_are_called_as_on_the_page() -> None:
    template = (ROOT / "src" / "lowbit" / "report" / "templates" / "report.html.j2").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "guides" / "output.md").read_text(encoding="utf-8").partition("## Reading the report")[2]
    named = re.findall(r"\*([A-Z][^*]+)\*", page)
    assert named
    assert set(named) <= set(re.findall(r"<h2>([^<]+)</h2>", template))


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "guides").glob("*.md")), ids=name_of)
def test_a_guide_with_a_command_names_the_extra_that_it_needs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if re.search(r"^lowbit (compress|eval|check|conform|bench)", text, re.MULTILINE):
        assert re.search(r"extras?\b[^.]*`(hf|conformance|foreign)`", text), page.name


def test_guides_come_before_the_chapters() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert nav.index("guides/") < nav.index("chapters/")
    for name in (
        "GPTQ",
        "EoRA",
        "RA-LoRA",
        "DoRA",
        "RoLoRA",
        "AlphaTuning",
        "fine-tuning",
        "KD-QAT",
        "OFQ",
        "ACS",
        "GQA-LUT",
    ):
        assert name in nav, f"nobody finds {name} in the navigation"


METHODS = {
    "RTN": "uniform packing", "GPTQ": "gptq", "SparseGPT, Wanda": "sparsity", "EoRA": "eigenspace",
    "divergence at the output": "divergence", "choices under a budget": "choices",
    "SVD, activation-scaled SVD": "low_rank", "NormalFloat and other codebooks": "codebook", "LoftQ": "loftq",
    "ternary weights, min-max": "ternary", "BCQ": "binary_coding", "AlphaTuning": "scale_tuning",
    "mixed precision": "mixed_precision", "RA-LoRA": "rank_budget", "DoRA": "dora", "RoLoRA, QuaRot": "rotation",
    "LSQ, LSQ+": "learned_step", "OFQ": "statsq oscillation qk_reparam", "KD-QAT, TSLD": "distill diagnostics",
    "ACS": "coreset", "GQA-LUT": "lut lut_search",
}  # fmt: skip
"""Row of the README's table → files of the specification."""


def test_the_table_of_methods_says_what_the_code_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    status = importlib.import_module("status")
    stands: dict[str, list[list[str]]] = {}
    for _, op, (_, _, _, numba, torch, kernel, _, command) in status.rows():
        stands.setdefault(getattr(reference, op).__module__.rpartition(".")[2], []).append(
            [numba, torch, kernel, command]
        )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Methods")[2].partition("## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line[:1] == "|"]
    said = {row[0].strip(): row[3:] for row in rows[2:]}
    assert set(said) == set(METHODS)
    for method, files in METHODS.items():
        columns = list(zip(*(cells for file in files.split() for cells in stands[file]), strict=True))
        numba, torch, kernel, command = said[method]
        assert (numba, torch) == tuple("yes" if set(column) == {"yes"} else "no" for column in columns[:2]), method
        kinds = set(columns[2])
        assert kernel == ("some" if len(kinds) == 2 else kinds.pop()), method
        assert (command != "no") == ("yes" in columns[3]), f"{method}: does a command call it?"

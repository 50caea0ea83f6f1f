# prunus: `make demo` shows it, `make test` tests it. Everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
# Which torch build: empty takes your pip's default. A CPU build, or one for your CUDA, comes from
# the index that https://pytorch.org/get-started/locally names: make TORCH_INDEX=<its address> demo
TORCH_INDEX ?=
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY = $(VENV)/.ready
BIN = $(VENV)/bin

.PHONY: demo test test-zoo test-zoo-all test-kills check format bench bench-quality bench-structure bench-artifact clean

demo: $(READY)
	$(BIN)/prunus run iterative

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test-zoo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m zoo

test-zoo-all: $(READY)  # an hour or two of a core; stopped, it goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py

test-kills: $(READY)  # half an hour of a core
	OMP_NUM_THREADS=1 $(BIN)/python tests/killed_runs.py random 500 0

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python benchmarks/choosing.py
	$(BIN)/python benchmarks/enforcing.py
	$(BIN)/python benchmarks/literal_rule.py
	$(BIN)/python benchmarks/sparse_file.py

bench-quality: $(READY)
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/source_budget.py

bench-structure: $(READY)  # two hours of a core; the opponent's rows: see benchmarks/structure.md
	$(BIN)/python benchmarks/structure.py --data $(PRUNUS_DATA) --out benchmarks/structure.jsonl
	$(BIN)/python benchmarks/structure_speed.py --data $(PRUNUS_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compaction_time.py

bench-artifact: $(READY)  # an hour of a core
	$(BIN)/python benchmarks/artifact.py --data $(PRUNUS_DATA) --out benchmarks/artifact.jsonl
	$(BIN)/python benchmarks/artifact.py --table benchmarks/artifact.jsonl

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "prunus needs Python 3.10 or newer: make PYTHON=python3.10 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (once; a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[dev]'
	@touch $@

# prunus: `make demo` shows it, `make test` tests it. Everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
# Which torch build: empty takes your pip's default. A CPU build, or one for your CUDA, comes from
# the index that https://pytorch.org/get-started/locally names: make TORCH_INDEX=<its address> demo
TORCH_INDEX ?=
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY = $(VENV)/.ready
BIN = $(VENV)/bin
# One thread a worker; an empty PYTHONDONTWRITEBYTECODE keeps what Python compiles, which otherwise
# every worker and every process that a test starts would do again.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: demo test test-zoo test-zoo-all test-kills check format docs bench bench-quality bench-methods bench-repair bench-structure bench-sparse bench-sparse-avx2 bench-sparse-gallery bench-artifact bench-one-shot bench-llm clean

demo: $(READY)
	$(BIN)/prunus run iterative

test: $(READY)
	$(PYTEST)

test-zoo: $(READY)
	$(PYTEST) -m zoo

test-zoo-all: $(READY)  # an hour or two of a core; stopped, it goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py

test-kills: $(READY)  # an hour of a core
	OMP_NUM_THREADS=1 $(BIN)/python tests/killed_runs.py random 500 0
	OMP_NUM_THREADS=1 $(BIN)/python tests/killed_runs.py full 200 0

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  # build/site/index.html; needs no network once the packages are installed
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -c docs . build/site

bench: $(READY)
	$(BIN)/python benchmarks/choosing.py
	$(BIN)/python benchmarks/enforcing.py
	$(BIN)/python benchmarks/literal_rule.py
	$(BIN)/python benchmarks/sparse_file.py

bench-quality: $(READY)
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/source_budget.py

bench-methods: $(READY)  # a day of a core: what is finished is not run again
	$(BIN)/python benchmarks/methods.py

bench-repair: $(READY)  # an hour of a core
	$(BIN)/python benchmarks/repair.py

bench-structure: $(READY)  # two hours of a core; the opponent's rows: see benchmarks/structure.md
	$(BIN)/python benchmarks/structure.py --data $(PRUNUS_DATA) --out benchmarks/structure.jsonl
	$(BIN)/python benchmarks/structure_speed.py --data $(PRUNUS_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compaction_time.py

bench-one-shot: $(READY)
	$(BIN)/python benchmarks/one_shot.py

bench-llm: $(READY)  # hours of a core; PRUNUS_LLM=folder, see benchmarks/llm.py
	$(BIN)/python benchmarks/llm.py

SPARSE = $(BIN)/python benchmarks/sparse.py --out benchmarks/sparse.jsonl $(SPARSE_MORE)
bench-sparse bench-sparse-avx2: $(READY)  # an hour of a core, half an hour of two; MNN takes part where it is installed
	OMP_NUM_THREADS=1 $(SPARSE) $(if $(filter %avx2,$@),--instructions avx2) --threads 1
	$(SPARSE) $(if $(filter %avx2,$@),--instructions avx2) --threads 2 --sparsities 0.8,0.9,0.95
	$(BIN)/python benchmarks/sparse.py --table benchmarks/sparse.jsonl > benchmarks/sparse.md
	$(BIN)/python benchmarks/sparse_picture.py benchmarks/sparse.jsonl docs/zeros.png

bench-sparse-gallery: $(READY)  # an hour of a core: three models are trained, then timed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sparse_gallery.py --data $(PRUNUS_DATA) --keep benchmarks/sparse_gallery.jsonl
	$(BIN)/python benchmarks/sparse_gallery.py --table benchmarks/sparse_gallery.jsonl > benchmarks/sparse_gallery.md

bench-artifact: $(READY)  # an hour of a core
	$(BIN)/python benchmarks/artifact.py --data $(PRUNUS_DATA) --out benchmarks/artifact.jsonl
	$(BIN)/python benchmarks/artifact.py --table benchmarks/artifact.jsonl

clean:
	rm -rf $(VENV) build/site .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.docs: $(READY)
	$(PIP) -e '.[docs]'
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "prunus needs Python 3.10 or newer: make PYTHON=python3.10 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV) (once; a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[dev]'
	@touch $@

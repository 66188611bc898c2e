# `make demo` and `make test` each work alone on a fresh clone; both set up .venv first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

SOURCES := $(wildcard csrc/*.* csrc/kernels/*) kan_kernels/ops/schemas.txt setup.py pyproject.toml
EXTENSION := $(VENV)/built
TRITON_36 := $(VENV)/triton-3.6
EXTENT ?= usual
BARE ?= build/install
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
GPU_PYTHON := PYTHONPATH=. $(if $(DRY),TRITON_INTERPRET=1 $(BIN)/python,CUBLAS_WORKSPACE_CONFIG=:4096:8 $(PYTHON))
CLANG ?= $(notdir $(firstword $(shell command -v clang++ || command -v clang++-14) clang++))
AARCH64_CXX ?= aarch64-linux-gnu-g++
SELF_CHECK := tests/cpp/self_check.cpp csrc/kernels_baseline.cpp csrc/scratch.cpp
SELF_CHECK_FLAGS := -std=c++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi -Wno-maybe-uninitialized -Icsrc

.PHONY: demo check test test-all test-gpu-code test-install bare install-as-documented test-asan test-clang test-cpp test-aarch64 lint docs bench gpu sdist pure-wheel clean

demo: $(EXTENSION)
	$(BIN)/python examples/digits.py $(ARGS)

# A minute for the inner loop: the best instruction set, some cases, bad input, layers, the house.
check: $(EXTENSION)
	$(PARALLEL) --extent check tests/test_operators.py tests/test_bad_input.py tests/test_layers.py tests/test_reference.py \
	  tests/test_house.py tests/test_golden.py $(ARGS)

test: $(EXTENSION) $(TRITON_36)/installed
	$(PARALLEL) tests $(ARGS)
	$(MAKE) test-gpu-code

# Every case with every instruction set, dtype and order, and every kernel for GPUs compiled for every target.
test-all: $(EXTENSION) $(TRITON_36)/installed
	$(PARALLEL) tests --extent full $(ARGS)
	$(MAKE) test-gpu-code EXTENT=full

# The kernels for GPUs without one: computed by Triton's interpreter, and compiled; a part of both with the oldest Triton that
# is supported.
test-gpu-code: $(EXTENSION) $(TRITON_36)/installed
	TRITON_INTERPRET=1 $(PARALLEL) --extent $(EXTENT) tests/gpu/test_kernels.py tests/gpu/test_edge_kernels.py
	$(PARALLEL) --extent $(EXTENT) tests/gpu/test_compiled.py
	TRITON_INTERPRET=1 PYTHONPATH=$(TRITON_36) $(PARALLEL) tests/gpu/test_kernels.py -k "gradients or nan or wide"
	PYTHONPATH=$(TRITON_36) $(PARALLEL) tests/gpu/test_compiled.py -k sm_90

# On a machine with a GPU, with the torch and the triton that are there: tests, then measurements. DRY=1 runs some tests and every
# line of the measurements without a GPU, in Triton's interpreter.
gpu: $(if $(DRY),$(EXTENSION))
	$(GPU_PYTHON) -m pytest tests/gpu/test_kernels.py tests/gpu/test_edge_kernels.py -W ignore \
	  --extent full -n 8 --dist worksteal $(if $(DRY),-k same_bits) $(ARGS)
	$(GPU_PYTHON) bench/gpu.py $(if $(DRY),--dry-run)

# The commands of docs/install.md as they stand there, in a new environment that has torch and nothing else.
test-install: bare
	$(MAKE) install-as-documented

bare:
	rm -rf $(BARE)
	$(PYTHON) -m venv $(BARE)
	$(BARE)/bin/pip install -q $(TORCH)

install-as-documented:
	awk '/^```/ { if (shown) exit; shown = 1; next } shown' docs/install.md | PATH="$(CURDIR)/$(BARE)/bin:$$PATH" sh -ex
	cd $(BARE) && bin/python -m kan_kernels | tee info.txt && grep -q "^C++ kernels" info.txt

# The kernels under AddressSanitizer and UBSan, in a build of their own.
test-asan: $(EXTENSION)
	KAN_KERNELS_SANITIZE=1 $(BIN)/python setup.py -q build_ext --build-lib build/asan --build-temp build/asan-temp
	tar -c --exclude="*.so" --exclude=__pycache__ kan_kernels | tar -x -C build/asan
	cd build/asan && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 PYTHONPATH=. \
	  ../../$(BIN)/python -m pytest ../../tests/test_nonfinite.py ../../tests/test_operators.py -p no:cacheprovider -q $(ARGS)

# The kernels as clang compiles them, in a build of their own.
test-clang: $(EXTENSION)
	CXX=$(CLANG) $(BIN)/python setup.py -q build_ext --build-lib build/clang --build-temp build/clang-temp
	tar -c --exclude="*.so" --exclude=__pycache__ kan_kernels | tar -x -C build/clang
	cd build/clang && PYTHONPATH=. ../../$(BIN)/python -m pytest ../../tests/test_nonfinite.py ../../tests/test_operators.py \
	  ../../tests/test_edges.py -n 2 -p no:cacheprovider -q $(ARGS)

# The baseline kernels, all that other architectures have, against scalar loops and without torch: on this machine, and compiled
# for aarch64 and emulated.
test-cpp: build/self_check
	build/self_check
	$(CXX) -std=c++17 -fsyntax-only -Wno-psabi -Icsrc bench/stages.cpp

test-aarch64:
	@for tool in $(AARCH64_CXX) qemu-aarch64; do command -v $$tool > /dev/null || { \
	  echo "test-aarch64: $$tool is missing. Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }; done
	$(MAKE) build/aarch64/self_check
	qemu-aarch64 build/aarch64/self_check

build/self_check: $(SELF_CHECK) $(wildcard csrc/*.* csrc/kernels/* tests/cpp/*)
	mkdir -p $(@D)
	$(CXX) $(SELF_CHECK_FLAGS) $(SELF_CHECK) -o $@

build/aarch64/self_check: $(SELF_CHECK) $(wildcard csrc/*.* csrc/kernels/* tests/cpp/*)
	mkdir -p $(@D)
	$(AARCH64_CXX) $(SELF_CHECK_FLAGS) -static $(SELF_CHECK) -o $@

lint: $(EXTENSION)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/python bench/table.py --check
	$(BIN)/python bench/chart.py --check

# The API and a page per task, in build/docs; warnings are errors.
docs: $(EXTENSION)
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs

bench: $(EXTENSION)
	$(BIN)/python bench/run.py $(ARGS)
	$(BIN)/python bench/models.py
	$(BIN)/python bench/variants.py
	$(BIN)/python bench/stages.py
	$(BIN)/python bench/edges.py
	$(BIN)/python bench/peers.py
	$(BIN)/python bench/table.py --write
	$(BIN)/python bench/plot.py
	$(BIN)/python bench/chart.py
	$(BIN)/python -m pytest bench/operators.py

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -U pip "setuptools>=77" wheel ninja
	$(BIN)/pip install -q $(TORCH) numpy
	touch $@

$(EXTENSION): $(VENV)/installed $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation --config-settings editable_mode=compat -e ".[dev]"
	touch $@

$(TRITON_36)/installed: $(VENV)/installed
	$(BIN)/pip install -q --no-deps --target $(TRITON_36) triton==3.6.0 numpy==2.3.5
	touch $@

sdist: $(EXTENSION)
	$(BIN)/python -m build --sdist --no-isolation

# The library without its C++ kernels, for platforms that have no wheel of their own.
pure-wheel: $(EXTENSION)
	KAN_KERNELS_NO_CPP=1 $(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist *.egg-info kan_kernels/*.so $(VENV)

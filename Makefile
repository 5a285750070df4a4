# Each target does all its own set-up in .venv; python3 (3.10 or later) and make are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install demo test test-processors check docs golden gpu gpu-bundle clean

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed, and $(PYTHON) is " + sys.version.split()[0] + ": name another one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,documents,export,eval,mpi,serve]'
	@touch $@

demo: install
	$(BIN)/deltalm demo

# One thread a process: the two workers, and the ranks that tests start, share the cores. Files in the order
# of tests/conftest.py: by their number of tests the longest would come last, and one worker wait for it.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST)

# The tests of numbers as a processor with AVX2 alone computes them, and as one without any vectors does.
NUMERIC_TESTS := tests/model tests/kernels tests/generation tests/export
NOT_BY_PROCESSOR := --ignore tests/kernels/test_fused.py --ignore tests/kernels/test_compilation.py
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 CT2_FORCE_CPU_ISA=AVX2
PLAIN := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 CT2_FORCE_CPU_ISA=GENERIC

test-processors: install
	$(AVX2) $(PYTEST) $(NUMERIC_TESTS) $(NOT_BY_PROCESSOR)
	$(PLAIN) $(PYTEST) $(NUMERIC_TESTS) $(NOT_BY_PROCESSOR)

# Record the golden loss curves anew: only with a change that is meant to change numbers.
golden: install
	DELTALM_RECORD_GOLDEN=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/training/test_golden.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layout.py tests/test_layering.py tests/test_docs.py

# The reference of every public function, from the docstrings: build/docs/index.html. The linked folders are named one by
# one because pdoc does not look into folders without an __init__.py.
docs: install
	CUDA_VISIBLE_DEVICES= $(BIN)/python -W "ignore:Cannot determine where" -m pdoc --docformat google \
	  --output-directory build/docs deltalm_ds deltalm_ds.kernels deltalm_ds.data_tools deltalm_ds.launch

# make bench-NAME runs benchmarks/NAME.py; make bench-kernels/NAME and bench-quality/NAME those in folders. Options: ARGS="--record".
bench-%: install
	$(BIN)/python -m benchmarks.$(subst /,.,$*) $(ARGS)

# All that needs a GPU, in nine minutes at most: PYTHON has torch with CUDA and pytest; no .venv and no network are needed.
OUT ?= gpu-results
gpu:
	$(PYTHON) -m benchmarks.gpu --out $(OUT) $(ARGS)

# What PYTHON lacks there, as wheels and data: build/gpu-bundle.
gpu-bundle: install
	$(BIN)/python -m benchmarks.gpu_bundle $(ARGS)

# Caches and build outputs; .venv, demo/ and runs/ stay.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# `make demo` and `make test` work from a fresh clone: they make .venv, install the pinned versions and build.
# Byte code is kept, whatever the caller's environment says: importing torch without takes seconds more.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# GPU machines bring their own torch: their targets use the system's Python and install nothing.
GPU_PYTHON ?= python3
BENCHMARKS := $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))

.PHONY: demo test pictures build format clean gpu-build gpu-test bench

demo: build
	$(PY) examples/demo.py

test: build
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/ctest --test-dir build/cmake --output-on-failure
	$(PY) -m pytest --ignore=tests/gpu -m "not alone" -n 2 --dist worksteal
	$(PY) -m pytest --ignore=tests/gpu -m alone

# The pictures of docs/: from plans and schedules alone, and of a step that is trained and measured here.
pictures: build
	mkdir -p docs/pictures runs/pictures
	$(PY) -m hetsched.cli show examples/digits/colocated.toml --format svg -o docs/pictures/colocated.svg
	$(PY) -m hetsched.cli train examples/digits/colocated.toml --steps 20 --out runs/pictures --trace runs/pictures/trace.json
	$(PY) -m hetsched.cli show examples/digits/colocated.toml --measured runs/pictures/trace.json --format svg \
		-o docs/pictures/colocated_measured.svg
	$(PY) -m hetsched.cli show --schedule 1f1b --stages 4 --microbatches 8 --encoder fill --split-items \
		--cost F=1,B=2,EF=0.5,EB=1 --format svg -o docs/pictures/fill.svg
	$(PY) -m hetsched.cli show --schedule zb-v --stages 6 --microbatches 6 --format svg -o docs/pictures/zb-v.svg

build: $(INSTALLED)
	$(PY) setup.py -q build_ext --inplace

# Without build isolation the build takes the pinned tools; --no-compile leaves byte code to the first import.
$(INSTALLED): setup.py pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --no-compile -c constraints.txt setuptools wheel cmake ninja pybind11
	$(PY) -m pip install -q --no-compile -c constraints.txt --no-build-isolation -e '.[dev,demo]'
	touch $@

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

gpu-build:
	$(GPU_PYTHON) setup.py -q build_ext --inplace

gpu-test: gpu-build
	$(GPU_PYTHON) tests/gpu/run_all.py

bench: gpu-build
	set -e; for script in $(BENCHMARKS); do PYTHONPATH=. $(GPU_PYTHON) $$script; done

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info hetsched/*.so

# make demo         animate the example picture; yours: make demo IMAGE=photo.jpg OUT=my.mp4
# make test         run every test and every notebook
# make lab          open JupyterLab at the first notebook
# make site         build the documents and executed notebooks as web pages in build/site
# make wheelhouse   download all packages for installing without internet: docs/instructors.md
# make bench        measure the speed-ups on this machine and update the table in the README
# make lint         check style, types, imports and clean notebooks;  make format  fixes most of it
# make clean        delete what make created
#
# Options:
#   PYTHON=python3.12                                      use this Python instead of python3
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu       use this build of PyTorch (here: CPU only)

# These two come from the command line only: the environment may use OUT for something else.
IMAGE :=
OUT :=
export IMAGE OUT

PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
PY := $(VENV)/Scripts/python.exe
else
PY := $(VENV)/bin/python
endif

PIP := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt
NOTEBOOKS := $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb)
# Two workers with one thread each are faster than one worker with two threads. OpenMP threads that
# wait by spinning can slow down a busy machine by a factor of seventy. Tests use the bundled
# checkpoint without a network; predictions and compiled graphs are kept for the next run.
TESTING := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 SVDNB_CHECKPOINT=pocket \
  SVDNB_CACHE="$(CURDIR)/build/predictions" TORCHINDUCTOR_CACHE_DIR="$(CURDIR)/build/compiled" \
  PYTHONPATH="$(CURDIR)/tests/support/cable_out"

# glibc gives large tensors back to the system after each use, and clearing their pages anew takes
# time. With these settings it keeps them; other systems ignore them. They work for a process and for
# the kernels that it starts, if they are set before Python starts.
ALLOCATOR := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

.PHONY: demo test lab site wheelhouse bench lint format clean

demo: $(VENV)/demo.done
	$(ALLOCATOR) $(PY) -m svdnb animate $(if $(IMAGE),"$$IMAGE") $(if $(OUT),-o "$$OUT")

test: $(VENV)/test.done
	$(TESTING) $(PY) -m pytest -q -rs -n 2 --dist loadfile tests notebooks

lab: $(VENV)/lab.done
	$(ALLOCATOR) $(PY) -m jupyterlab notebooks/01_basic_generation.ipynb

site: $(VENV)/test.done
	$(PY) -m sphinx -q -W --keep-going -n -E -c docs/site -d build/doctrees . build/site
	@echo "Open build/site/index.html"

wheelhouse: $(VENV)/venv.done
	$(PY) -m pip download -q -d wheelhouse -c constraints.txt --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PY) -m pip download -q -d wheelhouse -c constraints.txt --find-links wheelhouse setuptools ".[lab]"

bench: $(VENV)/demo.done
	$(ALLOCATOR) OMP_WAIT_POLICY=PASSIVE $(PY) benchmarks/speed.py --readme

lint: $(VENV)/test.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(dir $(PY))lint-imports --no-cache
	$(PY) -m nbstripout --keep-id --verify $(NOTEBOOKS)

format: $(VENV)/test.done
	$(PY) -m nbstripout --keep-id $(NOTEBOOKS)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# The .done files record what is installed, so that a second run installs nothing.

$(VENV)/venv.done:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))" || { \
	  echo "The pinned packages need Python 3.10 to 3.13, for example: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/demo.done: EXTRAS :=
$(VENV)/lab.done: EXTRAS := [lab]
$(VENV)/test.done: EXTRAS := [lab,test,dev,site]
$(VENV)/test.done: ALSO := $(VENV)/lab.done $(VENV)/demo.done
$(VENV)/lab.done: ALSO := $(VENV)/demo.done

$(VENV)/demo.done $(VENV)/lab.done $(VENV)/test.done: pyproject.toml constraints.txt | $(VENV)/venv.done
	@echo "Installing into $(VENV). This happens once and takes a few minutes."
	$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".$(EXTRAS)"
	@touch $@ $(ALSO)

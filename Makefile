# make demo    animate the example picture:  make demo IMAGE=photo.jpg OUT=my.mp4  for your own
# make test    every test, every notebook
# make lab     JupyterLab, open at the first notebook
# make site    documents and executed notebooks as pages, in build/site: some ten minutes
# make wheelhouse   everything that seats without a connection install: see docs/instructors.md
# make bench   how fast, measured on this machine: some 20 minutes; rewrites README's table
# make lint    what CI asks of the style;  make format  repairs most of it
# make clean   remove what make made
#
# PYTHON=python3.12                                      another Python than python3
# TORCH_INDEX=https://download.pytorch.org/whl/cpu       another build of PyTorch (this one: CPU only)

# Only the command line sets these two: OUT in particular may mean something else elsewhere.
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
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=400
# Waiting OpenMP threads that spin make busy machines up to seventy times slower.
# Tests use the checkpoint that comes along, on a machine with a GPU as well.
# Predictions of memory are made once, for the tests and for the notebooks; so are graphs.
TESTING := OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 SVDNB_CHECKPOINT=pocket \
  SVDNB_CACHE="$(CURDIR)/build/predictions" TORCHINDUCTOR_CACHE_DIR="$(CURDIR)/build/compiled"

.PHONY: demo test lab site wheelhouse bench lint format clean

demo: $(VENV)/demo.done
	$(PY) -m svdnb animate $(if $(IMAGE),"$$IMAGE") $(if $(OUT),-o "$$OUT")

test: $(VENV)/test.done
	$(TESTING) $(PY) -m pytest -q -rs tests
	$(TESTING) PYTHONPATH="$(CURDIR)/tests/support/cable_out" $(PY) -m pytest -q $(NBVAL) notebooks

lab: $(VENV)/lab.done
	$(PY) -m jupyterlab notebooks/01_basic_generation.ipynb

site: $(VENV)/test.done
	OMP_WAIT_POLICY=PASSIVE $(PY) tools/build_site.py

wheelhouse: $(VENV)/venv.done
	$(PY) -m pip download -q -d wheelhouse -c constraints.txt --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PY) -m pip download -q -d wheelhouse -c constraints.txt --find-links wheelhouse setuptools ".[lab]"

bench: $(VENV)/demo.done
	OMP_WAIT_POLICY=PASSIVE $(PY) benchmarks/speed.py --readme

lint: $(VENV)/test.done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy svdnb tools
	$(PY) -m nbstripout --keep-id --verify $(NOTEBOOKS)

format: $(VENV)/test.done
	$(PY) -m nbstripout --keep-id $(NOTEBOOKS)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# The .done files remember what is installed: a second run installs nothing.

$(VENV)/venv.done:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))" || { \
	  echo "svdnb needs Python 3.10 to 3.13. Name one you have: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/demo.done: EXTRAS :=
$(VENV)/lab.done: EXTRAS := [lab]
$(VENV)/test.done: EXTRAS := [lab,test,dev,site]
$(VENV)/test.done: ALSO := $(VENV)/lab.done $(VENV)/demo.done
$(VENV)/lab.done: ALSO := $(VENV)/demo.done

$(VENV)/demo.done $(VENV)/lab.done $(VENV)/test.done: pyproject.toml constraints.txt | $(VENV)/venv.done
	@echo "Installing into $(VENV): once, some minutes."
	$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".$(EXTRAS)"
	@touch $@ $(ALSO)

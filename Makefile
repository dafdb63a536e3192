# Every target works on a fresh clone: it sets up .venv first, once.
PYTHON ?= python3
ARGS ?=
WORKERS ?= logical
HOST ?= 127.0.0.1
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
SITE_STAMP := $(VENV)/.site
# bytecode is written, or every kernel and test process would compile the libraries anew
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo course test lab app board bench page site lint clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## create .venv with the tested versions of everything (PYTHON=... chooses the interpreter)

demo: $(STAMP)  ## the shortest way from nothing to pictures (ARGS="-p train_steps 60" to change a parameter)
	$(PY) -m galiplib.course demo $(ARGS)

course: $(STAMP)  ## run all notebooks in order (ARGS="02 03" for some of them)
	$(PY) -m galiplib.course run $(ARGS)

test: $(STAMP)  ## run the tests, a process a core, four at most (ARGS="-m 'not slow'" for the fast ones, WORKERS=0 for one process)
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab, on this machine only (HOST=0.0.0.0: from others, too)
	$(BIN)/jupyter lab --ServerApp.ip=$(HOST) --ServerApp.root_dir=notebooks $(ARGS)

app: $(STAMP)  ## the sampling panel as a web page, on this machine only (ARGS="--port 8877")
	$(PY) -m galiplib.panel.app $(ARGS)

page: $(STAMP)  ## the page that draws in the browser, for any static web server, in outputs/page (needs npm, once)
	$(PY) site/page/make_page.py $(ARGS)

board: $(STAMP)  ## watch training runs in TensorBoard, on this machine only (ARGS="--logdir outputs/birds")
	$(BIN)/tensorboard --host 127.0.0.1 --logdir outputs $(ARGS)

bench: $(STAMP)  ## time training and sampling beside the authors' way (tables and figures in benchmarks/results)
	$(PY) benchmarks/train_step.py
	$(PY) benchmarks/sampling.py
	$(PY) benchmarks/small_clip.py
	$(PY) benchmarks/loading.py
	$(PY) benchmarks/attention.py
	$(PY) benchmarks/growth.py

site: $(SITE_STAMP)  ## the course as a web site in build/site/html; runs what was not (ARGS="--small": at a small size, "--as-is": nothing)
	$(PY) site/make_site.py $(ARGS)

lint: $(STAMP)  ## check style and types of the code, and that the notebooks carry no outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

clean:  ## remove .venv and caches; data/ and outputs/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("galiplib needs Python 3.11 or later: make setup PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --python $(PY) -c constraints.txt -e '.[all]'
	touch $@

$(SITE_STAMP): $(STAMP)
	$(BIN)/uv pip install --python $(PY) -c constraints.txt -e '.[site]'
	touch $@

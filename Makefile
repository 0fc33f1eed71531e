# make demo   train, test and compare on photographs from scikit-image, starting with a bare clone
# make test   run the tests
# make lint   run ruff and mypy
# make docs   build the documents as a site, in build/site
# All of them create .venv first if it is missing; make setup does only that. PYTHON=python3.11 chooses the interpreter
# (3.10 to 3.14).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: setup demo test lint docs dist clean
setup: $(READY)

$(READY): requirements.txt setup.py scripts/setup_environment.py safmn/system/basicsr_install.py
	$(PYTHON) scripts/setup_environment.py --venv $(VENV)
	touch $(READY)

demo: $(READY)
	$(RUN) scripts/demo.py

# Two workers with one thread each are faster on two cores than two threads each, and results are the same everywhere.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(VENV)/bin/ruff check safmn scripts tests setup.py
	$(VENV)/bin/ruff format --check safmn scripts tests setup.py
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --platform win32
	$(VENV)/bin/mypy --platform darwin

docs: $(READY)
	grep ^mkdocs tests/requirements-extras.txt | xargs $(RUN) -m pip install -q
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# sdist and wheel in dist/, tested in fresh environments; downloads torch.
dist:
	$(PYTHON) scripts/make_dist.py

clean:
	rm -rf $(VENV) build dist *.egg-info

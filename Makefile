# Two commands do all on a new machine with Python 3.11 or later: `make quickstart`, `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: install quickstart test check slow

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

# Draw an exam bank, prepare shards, fine-tune from scratch, predict, print the result.
quickstart: install
	$(RUN) -m clipstem.prepare +drawn=quickstart out=shards/quickstart
	$(RUN) -m clipstem.train +experiment=quickstart
	$(RUN) -m clipstem.predict run=runs/quickstart data=shards/quickstart split=test

test: install
	$(RUN) -m pytest

# Format, lint, types, dead code, fast tests.
check: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m vulture
	$(RUN) -m pytest

# Minutes to hours: the full oracle, large data, long runs.
slow: install
	$(RUN) -m pytest -m slow

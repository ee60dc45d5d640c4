# Two commands do all on a new machine with Python 3.11 or later: `make quickstart`, `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Tests side by side, a thread each: on small models two threads are no faster than one. One more
# than there are cores, because some tests wait for processes that they have started.
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest --dist worksteal --maxprocesses 4 \
	-n $$(($$(getconf _NPROCESSORS_ONLN) + 1))

.PHONY: install quickstart test check slow browser slurm

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

# Draw an exam bank, prepare shards, fine-tune from scratch, predict, write the report, sit the exam.
# What is done already is not done again, and a training that was stopped goes on.
quickstart: runs/quickstart/report/report.html
	$(RUN) -m clipstem.exam predictions=runs/quickstart/predictions/test.parquet

shards/quickstart/manifest.json: | install
	$(RUN) -m clipstem.prepare +drawn=quickstart out=shards/quickstart

runs/quickstart/DONE: shards/quickstart/manifest.json
	$(RUN) -m clipstem.train +experiment=quickstart \
		resume=$$(test -f runs/quickstart/run.json && echo true || echo false)

runs/quickstart/predictions/test.parquet: runs/quickstart/DONE
	$(RUN) -m clipstem.predict run=runs/quickstart data=shards/quickstart split=test

runs/quickstart/report/report.html: | runs/quickstart/predictions/test.parquet
	$(RUN) -m clipstem.report predictions=[runs/quickstart/predictions/test.parquet] data=shards/quickstart out=runs/quickstart/report

test: install
	$(PYTEST)

# Format, lint, types, dead code, fast tests.
check: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m vulture
	$(PYTEST)

# Minutes to hours: the full oracle, large data, long runs.
slow: install
	$(PYTEST) -m slow

# The report in chromium: both themes, sorting, printing.
browser: install
	$(RUN) -m pytest -m browser

# Sweeps on a real SLURM, which the tests start and stop: needs Debian's slurm-wlm and munge, and root.
slurm: install
	$(RUN) -m pytest -m slurm

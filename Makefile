# Every target sets itself up: `make demo` and `make test` are all that a newcomer types.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: setup demo demo-flow test system bench docs lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24'
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: setup
	$(RUN) tools/demo.py

demo-flow: setup
	$(RUN) tools/demo.py --config config_demo_flow

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Two processes side by side, the longest files first and alone, then three to a process, for to start TensorFlow takes
# as long as some files do. Most of a test's time is one thread that traces graphs; more would only wait for each other.
LONGEST := $(patsubst %,tests/test_%.py,families resume distribution workers commands flow_translation)
LONG := $(patsubst %,tests/test_%.py,flow_training numpy_agreement steering exports flow_decoding sequence_level \
	import_variants training flow_doctor scheduled_sampling)
OTHERS = $(LONG) $(filter-out $(LONGEST) $(LONG),$(shell ls -S tests/test_*.py))

test: lint
	(printf '%s\n' $(LONGEST); echo $(OTHERS) | xargs -n 3) \
		| TF_NUM_INTRAOP_THREADS=1 xargs -P 2 -L 1 $(VENV)/bin/nosetests

system: setup
	$(VENV)/bin/nosetests system_tests

bench: demo
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(RUN) benchmarks/run_all.py

docs: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going docs site
	@echo open site/index.html

clean:
	rm -rf build dist site *.egg-info

# Each target works alone on a fresh machine with Python 3.11 or newer, and is quick when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MIN_VENV := .venv-min
MIN_INSTALLED := $(MIN_VENV)/.installed

.PHONY: demo cards docs test test-min check format clean

demo: $(INSTALLED)
	$(BIN)/hf-it3 demo --output_dir runs/demo $(ARGS)

cards: $(INSTALLED)
	$(BIN)/python model_cards/generate.py $(ARGS)

# Into build/docs; a link that leads nowhere is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 PATH="$(BIN):$$PATH" $(BIN)/mkdocs build --quiet --config-file docs/mkdocs.yml

# A file's tests run in one process, so that they share what its fixtures train.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# The same tests with the oldest versions that pyproject.toml admits; these are made for Python 3.11 and 3.12.
test-min: $(MIN_INSTALLED)
	$(MIN_VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An environment from an interrupted install has no stamp, so it is completed by the next call.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

# Every ">=" of pyproject.toml becomes a "==" for pip; the old torch is a CUDA build on Linux, several gigabytes.
$(MIN_INSTALLED): pyproject.toml
	test -x $(MIN_VENV)/bin/python || $(PYTHON) -m venv $(MIN_VENV)
	grep -oE '"[A-Za-z0-9._-]+(\[[a-z,]*\])?[>=]=[0-9.]+' pyproject.toml | sed -E 's/"|\[.*\]//g; s/>=/==/' \
		> $(MIN_VENV)/constraints.txt
	$(MIN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(MIN_VENV)/constraints.txt -e ".[test]"
	touch $(MIN_INSTALLED)

clean:
	rm -rf $(VENV) $(MIN_VENV) runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# make setup, make demo, make test: each does what it needs first
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
OPTIONS = $(if $(FRESH),fresh=$(FRESH:1=true)) $(if $(LENGTH),length=$(LENGTH))

.PHONY: setup demo emoji studies docs test lint format clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --editable '.[dev]'
	touch $@

# from nothing to pictures drawn from captions, with scores, in outputs/demo; FRESH=1 starts over;
# LENGTH=0.5 halves every training, in outputs/demo_0.5
demo: setup
	$(RUN) -m star.demo $(OPTIONS)

# the same on real pictures with captions that people wrote, in outputs/emoji
emoji: setup
	$(RUN) -m star.demo recipe=emoji $(OPTIONS)

# the paper in miniature, on the whole demo's tokenizer: outputs/studies and docs/studies.md; ONLY=positions,topk chooses
studies: override LENGTH =
studies: demo
	$(RUN) -m star.studies $(if $(ONLY),only=$(ONLY))

# the site, in site/; nothing is fetched, a dead link is an error
docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

test: setup lint
	$(RUN) -m pytest -n 2 --durations=10

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf outputs multirun site

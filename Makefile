# make demo | test | lint | bench | fuzz | docs | clean. Each makes .venv ready first, if it is not.
SHELL := /bin/sh
PYTHON := .venv/bin/python
HOURS ?= 1

.PHONY: help venv venv-serve demo demo-serve test test-slow lint bench fuzz docs clean

help:
	@echo "make demo       train a small Llama over three unlike meshes of emulated chips"
	@echo "make demo-serve serve what make demo trained, with vLLM, and ask it something"
	@echo "make test       the tests (about ten minutes on two cores)"
	@echo "make test-slow  the tests marked slow"
	@echo "make lint       ruff, mypy, import-linter, bandit"
	@echo "make bench      start-up, overhead over a bare megatron-core loop, what hides a slow link"
	@echo "make fuzz       random layouts against the one-process run, for HOURS=1"
	@echo "make docs       write the generated pages of docs/ anew"
	@echo "make venv-serve an environment with vLLM, for serving (2.5 GB on CPUs)"
	@echo "make clean      remove what builds and runs left behind (not .venv, .venv-serve)"

venv:
	@tools/venv.sh

venv-serve:
	@tools/venv.sh serve

# A demo that was interrupted goes on from its checkpoint; one that is done begins anew.
demo: venv
	@if grep -qs '"state": "done"' outputs/llama-demo/run.json; then rm -rf outputs/llama-demo; fi
	@$(PYTHON) tools/prepare_data.py --corpus python --train-tokenizer outputs/data/tokenizer.json --vocab-size 4096 --output outputs/data/python
	@$(PYTHON) run.py --config-path examples/llama/conf --config-name demo action=run

demo-serve: venv venv-serve
	@test -d outputs/llama-demo/checkpoints || $(MAKE) demo
	@$(PYTHON) tools/demo_serve.py

test: venv
	$(PYTHON) -m pytest -m "not slow"

test-slow: venv
	$(PYTHON) -m pytest -m slow

lint: venv
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/bandit -q -c pyproject.toml -r flagvega backends hardware tools run.py

bench: venv
	$(PYTHON) tools/bench/startup.py
	$(PYTHON) tools/bench/train_overhead.py
	$(PYTHON) tools/bench/bridge_overlap.py

fuzz: venv
	$(PYTHON) tools/fuzz_layouts.py --hours $(HOURS)

docs: venv
	$(PYTHON) tools/make_configuration_docs.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache outputs
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

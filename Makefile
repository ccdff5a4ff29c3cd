# What a newcomer needs: `make demo`. Everything stays in .venv and the user's cache.

# The first interpreter that the pinned packages are made for.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with vLLM for the CPU and everything pinned in requirements/
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; \
	install one or set PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) scripts/setup_cpu.py

demo: setup ## answer a few prompts through vLLM, plain and with Medusa
	@$(BIN)/vllm-medusa demo $(DEMO_ARGS)

lint: setup ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint ## lint, then all tests that need no GPU
	$(BIN)/python -m pytest -m "not slow and not gpu" $(PYTEST_ARGS)

bench: setup ## measure latency against plain vLLM (half an hour; needs a quiet machine)
	$(BIN)/python -m benchmarks.latency $(BENCH_ARGS)

clean: ## remove build output and tool caches, not .venv
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

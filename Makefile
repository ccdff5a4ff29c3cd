# What a newcomer needs: `make demo`. Everything stays in .venv and the user's cache.

# The first interpreter that the pinned packages are made for.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# Each worker runs whole files, one engine at a time, on one thread. In the order of
# collection the slow files, those with engines, come first. A worker that dies is not
# replaced: its file would run again, and the run may then wait for ever.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	--no-loadscope-reorder --max-worker-restart 0
# Model Runner V2 and the Triton kernels, in Triton's interpreter.
V2 := MEDUSA_TEST_RUNNER=v2
# The next supported vLLM in front of the installed one.
NEXT = PYTHONPATH=$$($(BIN)/python scripts/setup_next.py --path)
QUICK := not slow and not gpu

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test test-next test-slow bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

test: lint ## lint, then all tests that need no GPU, and some on the next vLLM
	$(PYTEST) -m "$(QUICK)" $(PYTEST_ARGS)
	$(V2) $(PYTEST) -m "(engine or interpreter) and $(QUICK)" $(PYTEST_ARGS)
	$(BIN)/python scripts/setup_next.py
	$(NEXT) $(PYTEST) -m smoke tests/engine $(PYTEST_ARGS)
	$(NEXT) $(V2) $(PYTEST) -m smoke tests/engine $(PYTEST_ARGS)

test-next: setup ## all engine tests on the next supported vLLM
	$(BIN)/python scripts/setup_next.py
	$(NEXT) $(PYTEST) -m "engine and $(QUICK)" $(PYTEST_ARGS)
	$(NEXT) $(V2) $(PYTEST) -m "(engine or interpreter) and $(QUICK)" $(PYTEST_ARGS)

test-slow: setup ## what `make test` leaves out for its length
	$(PYTEST) -m "slow and not gpu" $(PYTEST_ARGS)
	$(V2) $(PYTEST) -m "(engine or interpreter) and slow and not gpu" $(PYTEST_ARGS)

bench: setup ## measure latency against plain vLLM (half an hour; needs a quiet machine)
	$(BIN)/python -m benchmarks.latency $(BENCH_ARGS)

clean: ## remove build output and tool caches, not .venv
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

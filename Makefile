.DEFAULT_GOAL := help
.PHONY: help setup demo verify test unit host vm lint bench clean

help: ## Show what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## Install what banger needs to run
	@scripts/setup.sh

demo: setup ## Set everything up and end with a healthy VM
	@scripts/demo.sh

verify: setup ## Set everything up and try it once, with a VM that is made and deleted
	@scripts/verify.sh

test: ## Set everything up and run every level of tests
	@scripts/setup.sh dev
	@scripts/test.sh

unit host vm: ## Run one level of tests
	@scripts/setup.sh dev
	@scripts/test.sh $@

lint: ## Run ruff and mypy
	@scripts/setup.sh dev
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

bench: ## Measure, and write the figures of docs/performance.md
	@scripts/setup.sh dev
	@.venv/bin/python -m bench

clean: ## Remove what make made here; images and VMs stay
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis test-artifacts

#!/usr/bin/env bash
# Runs the levels of tests that are named, or all that this machine can; tests of machines run beside the others.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python -m tests.support.levels "$@"

#!/usr/bin/env bash
# Runs the levels of tests that are named, or all that this machine can.
set -euo pipefail
cd "$(dirname "$0")/.."
levels=("$@")
[ ${#levels[@]} -gt 0 ] || levels=(unit host vm)
paths=()
for level in "${levels[@]}"; do
    if [ "$level" != unit ] && [ "$(id -u)" != 0 ]; then
        echo "skipping the $level tests: they need root" >&2
        continue
    fi
    paths+=("tests/$level")
done
exec .venv/bin/python -m pytest "${paths[@]}"

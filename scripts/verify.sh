#!/usr/bin/env bash
# A live smoke test, as a person would do it. IMAGE names the image (default: debian, which is made when it is not there).
set -euo pipefail
cd "$(dirname "$0")/.."
banger=.venv/bin/banger
image=${IMAGE:-debian}

if [ "$image" = debian ] && ! "$banger" image show debian >/dev/null 2>&1; then
    printf '== banger image bootstrap debian\n' >&2
    "$banger" image bootstrap debian >/dev/null
fi
printf '== banger verify --image %s\n' "$image" >&2
exec "$banger" verify --image "$image"

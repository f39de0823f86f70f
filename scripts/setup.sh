#!/usr/bin/env bash
# Installs what banger needs: Debian packages, and a virtual environment with pinned Python packages.
#   scripts/setup.sh        to run banger
#   scripts/setup.sh dev    to test it as well
# Safe to run again: does nothing when all is there. Exit 5: the host lacks something; one line says what to do.
set -euo pipefail
cd "$(dirname "$0")/.."
flavour=${1:-run}
packages=(qemu-system-x86 qemu-utils e2fsprogs mmdebstrap busybox-static iproute2 kmod openssh-client zstd)

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $1"; say "hint:  $2"; exit 5; }

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || die "banger needs Linux on x86_64" "use such a machine"
command -v apt-get >/dev/null || die "this set-up needs a Debian-like system (apt-get)" \
    "install by hand: ${packages[*]}, then: python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ."

python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
# opencode comes from where npm on this host gets its packages
command -v npm >/dev/null || env | grep -qi '^npm_config_registry=' || packages+=(npm)
# for tests: filesystems that share blocks, and what imports OCI images, which is optional at run time
[ "$flavour" = run ] || packages+=(xfsprogs btrfs-progs skopeo umoci bubblewrap)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    install="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "these Debian packages are missing: ${missing[*]}" "as root: $install"
    say "installing ${#missing[@]} Debian packages: ${missing[*]}"
    log=$(mktemp)
    # shell on purpose: the line shown to a person is the line that runs
    if ! DEBIAN_FRONTEND=noninteractive bash -c "$install" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "apt-get failed" "by hand: $install"
    fi
    rm -f "$log"
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "banger needs Python 3.11 or newer; python3 is $(python3 -V 2>&1)" "put a newer python3 first in PATH"

wanted="$flavour $(python3 -V) $(cat pyproject.toml constraints.txt | sha256sum)"
if [ "$(cat .venv/.ready 2>/dev/null)" != "$wanted" ]; then
    say "making .venv with pinned Python packages"
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || python3 -m venv --clear .venv
    target=.
    [ "$flavour" = dev ] && target='.[dev]'
    log=$(mktemp)
    if ! .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e "$target" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "pip could not install the Python packages" \
            "check the network, then: .venv/bin/pip install -c constraints.txt -e '$target'"
    fi
    rm -f "$log"
    printf '%s\n' "$wanted" >.venv/.ready
fi

# a command that has to compile what it imports takes twice as long, and where bytecode is not written each one would
.venv/bin/python -m compileall -q src || say "note:  not every module could be compiled"

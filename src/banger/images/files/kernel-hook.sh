#!/bin/sh
# Run by mmdebstrap as: kernel-hook.sh ROOT OUT META...
# Downloads, with the signatures and digests of apt, the kernel that the first known meta package stands for.
set -eu
root=$1 out=$2
shift 2
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
for meta; do
    package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[^<>]*\)$/\1/p' | head -n 1)
    [ -z "$package" ] || break
done
if [ -z "$package" ]; then
    echo "E: the suite has none of the kernels $*" >&2
    exit 1
fi
cd "$out"
file=$(apt-get download --print-uris "$package" | cut -d ' ' -f 2)
# a copy from an earlier run spares the download; apt checks its digest all the same
[ ! -e "$root/var/cache/apt/archives/$file" ] || cp "$root/var/cache/apt/archives/$file" .
apt-get download "$package"

#!/usr/bin/env bash
# From nothing to a healthy VM, and what to type next.
set -euo pipefail
cd "$(dirname "$0")/.."
banger=.venv/bin/banger
name=demo
begun=$SECONDS

say() { printf '%s\n' "$*" >&2; }

if ! "$banger" image show debian >/dev/null 2>&1; then
    say "== banger image bootstrap debian"
    "$banger" image bootstrap debian >/dev/null
fi

state=$("$banger" vm show "$name" --json 2>/dev/null | sed -n 's/^  "state": "\([a-z]*\)".*/\1/p' || true)
case "$state" in
"")
    say "== banger vm create --name $name"
    "$banger" vm create --name "$name" >/dev/null
    ;;
running) say "== the VM $name runs already" ;;
*)
    say "== banger vm start $name"
    "$banger" vm start "$name" >/dev/null
    ;;
esac

say "== banger vm show $name"
"$banger" vm show "$name"
printf '\n'
say "== banger vm health $name"
"$banger" vm health "$name"
cat <<END

Ready after $((SECONDS - begun)) s. Try:
  $banger vm exec $name -- uname -a
  $banger vm exec -it $name -- bash
  $banger vm ssh $name
  $banger vm cp ./docs $name:/root/
  $banger vm ports $name
  $banger vm opencode $name
  $banger vm console $name
  $banger vm list
  $banger vm stop $name
  $banger vm delete $name
END

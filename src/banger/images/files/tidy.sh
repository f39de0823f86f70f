# Takes out of the root at $ROOT what belongs to one machine or one person: run by busybox's sh while nothing of the
# root runs. Of root's home, with KEEP_ROOT=1 all stays; else what is in $TREE/home, if anything, takes its place.
# The root may be anybody's. A directory is only entered by a path without symbolic links, nothing is written through a
# name that is there already, and of a file that has several names one goes: by the others it stays what it is.
# Fails when something of it could not be taken out, and says what.

set -u
[ -n "$ROOT" ] && cd "$ROOT" || exit 1
failed=''

# Whether a directory is one, and no part of its path is a link.
real() {
    walked=.
    rest=$1
    while [ -n "$rest" ]; do
        part=${rest%%/*}
        case $rest in
        */*) rest=${rest#*/} ;;
        *) rest='' ;;
        esac
        walked=$walked/$part
        if [ -L "$walked" ] || [ ! -d "$walked" ]; then
            return 1
        fi
    done
}

parent() {
    case $1 in
    */*) echo "${1%/*}" ;;
    *) echo . ;;
    esac
}

# Whether there is such a name, be it a link's that leads nowhere.
there() {
    [ -L "$1" ] || [ -e "$1" ]
}

# Remove files and trees; a link goes itself.
cut() {
    for path in "$@"; do
        if real "$(parent "$path")" && there "./$path"; then
            rm -rf "./$path" || failed="$failed $path"
        fi
    done
}

# Remove what find's conditions choose below a directory.
sweep() {
    where=$1
    shift
    real "$where" || return 0
    find "./$where" -mindepth 1 "$@" -exec rm -rf {} +
    [ -z "$(find "./$where" -mindepth 1 "$@" | head -n 1)" ] || failed="$failed $where"
}

# Remove all that is in directories; they stay.
empty() {
    for path in "$@"; do
        sweep "$path" -maxdepth 1
    done
}

# Put a file in the place of one that is there; where there is none, none is made.
renew() {
    if real "$(parent "$1")" && there "./$1"; then
        rm -rf "./$1" || failed="$failed $1"
        there "./$1" || printf '%s' "$2" >"./$1"
        chmod "$3" "./$1"
    fi
}

# ---- this machine

sweep etc/ssh -maxdepth 1 ! -type d -name 'ssh_host_*'
cut etc/resolv.conf etc/.pwd.lock
[ -L var/lib/dbus/machine-id ] || cut var/lib/dbus/machine-id
renew etc/machine-id '' 444
renew etc/hostname 'banger
' 644
cut var/lib/systemd/random-seed var/lib/systemd/credential.secret var/lib/systemd/timesync/clock \
    var/lib/urandom/random-seed var/lib/misc/random-seed var/lib/random-seed etc/random-seed
empty var/lib/seedrng var/lib/systemd/coredump var/crash
# leases, and what a cloud has said
empty var/lib/dhcp var/lib/dhcpcd var/lib/dhclient var/lib/NetworkManager
cut var/lib/cloud

# ---- what is temporary, and logs: their directories stay, as services want them

empty tmp var/tmp run var/run
empty var/log/journal
sweep var/log ! -type d ! -type l

# ---- what can be fetched again

empty var/lib/apt/lists var/cache/apt var/cache/apk var/cache/xbps
sweep var/cache/debconf -maxdepth 1 -name 'passwords.dat*'
sweep var/db/xbps -mindepth 2 -maxdepth 2 -name '*-repodata*'

# ---- people

# Of a home that stays: histories, private keys, hosts that were visited, credentials.
tidy_home() {
    for name in .bash_history .ash_history .sh_history .zsh_history .histfile .python_history .node_repl_history \
        .sqlite_history .psql_history .mysql_history .rediscli_history .lesshst .viminfo .wget-hsts .netrc \
        .git-credentials .npmrc .pypirc .Xauthority .cache .local/share/opencode .local/state/opencode .aws \
        .docker/config.json .config/gh .config/gcloud .kube .gnupg .password-store; do
        cut "$1/$name"
    done
    sweep "$1/.ssh" -maxdepth 1 ! -type d -name 'known_hosts*'
    sweep "$1/.ssh" -maxdepth 1 ! -type d -name 'id_*' ! -name '*.pub'
}

if real home; then
    for home in home/*; do
        if real "$home"; then
            tidy_home "$home"
        fi
    done
fi
if [ "${KEEP_ROOT:-0}" != 1 ]; then
    empty root
    if [ -n "${TREE:-}" ] && [ -d "$TREE/home" ]; then
        there root || mkdir -m 700 root
        real root && cp -a "$TREE/home/." root/ && chown -hR 0:0 root && chmod 700 root || failed="$failed root"
    elif [ -L root ]; then
        failed="$failed root"
    fi
fi

[ -z "$failed" ] && exit 0
echo "cannot take out:$failed"
exit 1

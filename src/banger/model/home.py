"""What the home directory of a guest's root must have, so that ssh lets its owner in and bash feels as it should."""

from typing import NamedTuple

WORK_LABEL = "banger-work"

_PROFILE = b"""# Read by login shells; ~/.bashrc has what every interactive shell shall know.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ ! -d "$HOME/.local/bin" ] || PATH=$HOME/.local/bin:$PATH
export PATH
if [ -n "${BASH_VERSION:-}" ] && [ -f "$HOME/.bashrc" ]; then
    . "$HOME/.bashrc"
fi
"""

_BASHRC = b"""# Read by interactive shells of bash.
case $- in
*i*) ;;
*) return ;;
esac
HISTCONTROL=ignoreboth
HISTSIZE=10000
HISTFILESIZE=20000
shopt -s histappend checkwinsize
PS1='\\u@\\h:\\w\\$ '
case ${TERM:-dumb} in
dumb) ;;
*)
    PS1='\\[\\e[1;32m\\]\\u@\\h\\[\\e[0m\\]:\\[\\e[1;34m\\]\\w\\[\\e[0m\\]\\$ '
    alias ls='ls --color=auto' grep='grep --color=auto'
    ;;
esac
# login shells have read it already
if [ -z "${BASH_COMPLETION_VERSINFO:-}" ] && [ -r /usr/share/bash-completion/bash_completion ]; then
    . /usr/share/bash-completion/bash_completion
fi
"""


class HomeFile(NamedTuple):
    """A file that must be there: its path below the home, its mode, and its content where it is missing."""

    path: str
    mode: int
    content: bytes


HOME_MODE = 0o700
SSH_DIRECTORY, SSH_MODE = ".ssh", 0o700
AUTHORIZED_KEYS, KEYS_MODE = ".ssh/authorized_keys", 0o600
# What makes a directory look like a home. Files that a person changed stay as they are; only missing ones are written.
SHELL_FILES = (HomeFile(".profile", 0o644, _PROFILE), HomeFile(".bashrc", 0o644, _BASHRC))

"""How each distribution installs packages. Only the words differ."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from banger.model.errors import Invalid, Unsupported

# shell variables of every step
ENVIRONMENT = {
    "BANGER_BUILD": "1",
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_APT_GET = "apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3"


@dataclass(frozen=True)
class Distro:
    """A distribution's own words, as shell commands; `{names}` stands for quoted package names.

    name           what a package may be called
    install        makes the lists of packages fresh, and installs
    docker         the packages that Docker is, and what makes its service start at boot
    libc           which build of a foreign program runs
    """

    title: str
    name: re.Pattern[str]
    install: str
    docker: tuple[str, ...]
    enable_docker: str
    libc: Literal["glibc", "musl"]

    def check_packages(self, names: Sequence[str]) -> None:
        """Raise `Invalid` naming the first that is no package's name, or would be understood as something else."""
        for name in names:
            if not self.name.fullmatch(name):
                raise Invalid(f"{name!r} is not a package name of {self.title}", hint="give names such as git or jq")

    def install_command(self, names: Sequence[str]) -> str:
        """A shell command. Raises `Invalid` like `check_packages`."""
        self.check_packages(names)
        return self.install.replace("{names}", shlex.join(names))


_DEBIAN = Distro(
    title="Debian",
    # apt-get takes a dash at the end for "remove", and a plus for "install" where no package is called so
    name=re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.](:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?"),
    install=f"{_APT_GET} update && {_APT_GET} install -y --no-install-recommends -- {{names}} && apt-get clean",
    docker=("docker.io", "iptables", "ca-certificates"),
    enable_docker="systemctl enable docker.service",
    libc="glibc",
)
_ALPINE = Distro(
    title="Alpine",
    name=re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*([~=<>]+[A-Za-z0-9._-]+)?"),
    install="apk add --no-progress --no-cache {names}",
    docker=("docker",),
    enable_docker="rc-update add docker default",
    libc="musl",
)
_VOID = Distro(
    title="Void",
    name=re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*"),
    install="xbps-install -S -y {names}",
    docker=("docker",),
    enable_docker="ln -sf /etc/sv/docker /etc/runit/runsvdir/default/",
    libc="glibc",
)
_BY_ID = {"debian": _DEBIAN, "ubuntu": _DEBIAN, "alpine": _ALPINE, "void": _VOID}


def distro_of(identifier: str) -> Distro:
    """By an image's `distro`. Raises `Unsupported`."""
    if identifier not in _BY_ID:
        raise Unsupported(
            f"how {identifier or 'an unknown distribution'} installs packages is not known",
            hint="leave packages, --docker and --opencode out, and install with a script",
        )
    return _BY_ID[identifier]

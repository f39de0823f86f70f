"""Packages as a registry serves them, small ones: their bytes, and the build that pins them."""

import base64
import hashlib
import tarfile

from banger.images.opencode import Build
from tests.support.firecracker import archive, member, program

NAME, VERSION = "opencode-test", "9.9.9"
PATH = f"/{NAME}/-/{NAME}-{VERSION}.tgz"
PROGRAM = "package/bin/opencode"
Parts = list[tuple[tarfile.TarInfo, bytes]]


def parts(says: str = "opencode 9.9.9") -> Parts:
    """What the real package has, and more that is not wanted."""
    return [
        member("package/package.json", b"{}"),
        member(PROGRAM, program(says)),
        member("package/bin/postinstall.sh", b"#!/bin/sh\ntouch /tmp/ran\n"),
    ]


def package(members: Parts | None = None) -> bytes:
    return archive(parts() if members is None else members)


def build_of(content: bytes) -> Build:
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return Build(NAME, VERSION, f"sha512-{digest}")

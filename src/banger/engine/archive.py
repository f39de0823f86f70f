"""Taking two programs out of a release's archive. The archive is hostile until this module is done with it."""

import tarfile
from pathlib import Path

from banger.model.errors import HostRequirement, Invalid
from banger.system.archive import BadArchive, NoRoom, open_archive, write_member

PROGRAM_MAX = 64 * 1024 * 1024
UNPACKED_MAX = 1024 * 1024 * 1024
MEMBERS_MAX = 1000
_HINT = "this is not an archive of Firecracker for x86-64 as its makers release it"
_ELF_X86_64 = 62
_EXECUTABLE, _POSITION_INDEPENDENT = 2, 3


def unpack(archive: Path, version: str, directory: Path) -> dict[str, str]:
    """Write `firecracker` and `jailer` of the archive to the directory, mode 0755; returns their SHA-256 in hex.

    Raises `Invalid` for an archive that is not the release's, `HostRequirement` when the disk is full.
    """
    wanted = {f"release-v{version}-x86_64/{name}-v{version}-x86_64": name for name in ("firecracker", "jailer")}
    try:
        with open_archive(archive, unpacked_max=UNPACKED_MAX) as members:
            digests = _take(members, wanted, directory)
    except BadArchive as error:
        raise _bad(str(error)) from error
    except NoRoom as error:
        raise HostRequirement(
            f"there is no room for the engine in {directory.parent}", hint="free some space on that disk"
        ) from error
    if missing := sorted(set(wanted.values()) - set(digests)):
        raise _bad(f"it has no {' and no '.join(missing)} of version {version}")
    return digests


def _take(members: tarfile.TarFile, wanted: dict[str, str], directory: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    for number, member in enumerate(members):
        if number >= MEMBERS_MAX:
            raise BadArchive(f"it has more than {MEMBERS_MAX} members")
        # absolute names, names and links that lead outside, and devices are refused, wanted or not
        safe = tarfile.data_filter(member, str(directory))
        name = wanted.get(safe.name)
        if name is None:
            continue
        if name in digests:
            raise BadArchive(f"its {name} is not one plain file")
        digests[name] = _write(members, member, directory / name)
    return digests


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> str:
    seen = False

    def check(piece: bytes) -> None:
        nonlocal seen
        if not seen and not _is_program(piece):
            raise BadArchive(f"its {target.name} is not a program for x86-64")
        seen = True

    return write_member(members, member, target, mode=0o755, largest=PROGRAM_MAX, told=check)


def _is_program(head: bytes) -> bool:
    """Whether this begins like a 64-bit little-endian ELF executable for x86-64 (elf(5))."""
    kind, machine = int.from_bytes(head[16:18], "little"), int.from_bytes(head[18:20], "little")
    return (
        len(head) >= 64
        and head[:6] == b"\x7fELF\x02\x01"
        and kind in (_EXECUTABLE, _POSITION_INDEPENDENT)
        and machine == _ELF_X86_64
    )


def _bad(what: str) -> Invalid:
    return Invalid(f"the archive cannot be used: {what}", hint=_HINT)

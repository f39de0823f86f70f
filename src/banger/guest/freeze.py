"""Filesystems of a running guest that stand still for a moment, whole on their disks."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files

from banger.guest.channel import Guest, decode_exit
from banger.guest.stream import ExecStream
from banger.model.errors import CommandFailed, GuestUnreachable
from banger.model.guest import ExecRequest, Stream
from banger.model.text import harmless

FREEZE_S = 60.0  # what was not written yet is written first
THAW_S = 15.0
_FROZEN = b"frozen\n"
_SAID_MAX = 4096


@asynccontextmanager
async def frozen(guest: Guest, paths: Sequence[str]) -> AsyncIterator[None]:
    """Within the block nothing is written to the filesystems that are mounted at these paths, and all that was is on
    their disks. They are thawed afterwards, also when the connection breaks or we die; after two minutes in any case.

    Raises `CommandFailed` when the guest cannot do it, `GuestUnreachable`; nothing is frozen then.
    """
    program = files("banger.guest").joinpath("files/freeze.py").read_text()
    argv = ("python3", "-I", "-S", "-B", "-c", program, *paths)
    async with await guest.exec(ExecRequest(argv=argv, cwd="/")) as stream:
        await _until_frozen(stream)
        try:
            yield
        finally:
            with contextlib.suppress(GuestUnreachable):  # it thaws by itself then
                await stream.send(Stream.STDIN, b"")
                while (await stream.receive(timeout=THAW_S))[0] is not Stream.EXIT:
                    pass


async def _until_frozen(stream: ExecStream) -> None:
    said = {Stream.STDOUT: b"", Stream.STDERR: b""}
    while said[Stream.STDOUT] != _FROZEN:
        kind, payload = await stream.receive(timeout=FREEZE_S)
        if kind is Stream.EXIT:
            ended = decode_exit(payload)
            text = said[Stream.STDERR].decode(errors="replace").strip() or ended.error or f"status {ended.status}"
            raise CommandFailed(f"the guest's filesystems cannot be frozen: {harmless(text.splitlines()[-1])}")
        said[kind] += payload
        if sum(map(len, said.values())) > _SAID_MAX:
            raise GuestUnreachable("the guest says too much while its filesystems shall be frozen")

"""Commands in a guest over SSH, for work that a person watches: each prints line by line, and has a deadline.

The connection goes through the VM's vsock tunnel, the guest's host key is pinned, and nothing of the person's own SSH
is used: no configuration, agent, known hosts or keys. The guest is hostile: lines are cut, and no wait is endless.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from pathlib import Path

import asyncssh

from banger.guest.stream import drop
from banger.model.errors import GuestUnreachable, Timeout

LOGIN_S = 120.0
LINE_MAX = 4096
GONE_S = 5.0
LAST_OUTPUT_S = 1.0  # for what a command has printed before it ended; what it left running may hold its output open
_PIECE = 65536
Heard = Callable[[str], None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

asyncssh.set_log_level(logging.ERROR)


class Lines:
    """Cuts what comes into lines, also at a carriage return; one without an end is cut at `LINE_MAX` bytes."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._left = b""

    def feed(self, data: bytes) -> None:
        *lines, left = (self._left + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._tell(line)
        while len(left) > LINE_MAX:
            self._tell(left[:LINE_MAX])
            left = left[LINE_MAX:]
        self._left = left

    def end(self) -> None:
        self._tell(self._left)
        self._left = b""

    def _tell(self, line: bytes) -> None:
        for at in range(0, len(line), LINE_MAX):
            self._heard(line[at : at + LINE_MAX].decode(errors="replace"))


class _Session(asyncssh.SSHClientSession[bytes]):
    """One command: its output as lines, its end as a number."""

    def __init__(self, heard: Heard) -> None:
        self._streams = {None: Lines(heard), asyncssh.EXTENDED_DATA_STDERR: Lines(heard)}
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype in self._streams:
            self._streams[datatype].feed(data)

    def exit_status_received(self, status: int) -> None:
        self._end(status)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        import signal as signals

        number = getattr(signals, f"SIG{signal}", 0)
        self._end(128 + int(number))

    def _end(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    def eof_received(self) -> bool:
        self.closed.set()
        return False

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        for lines in self._streams.values():
            lines.end()
        if not self.ended.done():
            self.ended.set_exception(_lost(str(exc) if exc else "the connection was closed"))
            self.ended.exception()  # whoever waits for it is told; nobody may
        self.closed.set()
        self.writable.set()


class Shell:
    """A login in a guest. Make one with `login`."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection

    async def run(
        self, command: str, heard: Heard, *, timeout: float, stdin: AsyncIterable[bytes] | None = None
    ) -> int:
        """Run a shell command as root; `heard` is given each line of both its streams. Returns its exit status.

        It has ended when its first process has: what that leaves running is left alone. 128 and the signal's number
        for one that a signal ended. Raises `Timeout` after so many seconds, `GuestUnreachable` when the guest goes
        away, and what `stdin` raises; the command is killed then, and when the caller is cancelled.
        """
        try:
            async with asyncio.timeout(timeout):
                session = _Session(heard)
                channel, _ = await self._connection.create_session(lambda: session, command, encoding=None)
                try:
                    return await _finish(channel, session, stdin)
                finally:
                    if not session.ended.done():
                        with contextlib.suppress(OSError, asyncssh.Error):
                            channel.kill()
                    channel.abort()
        except TimeoutError as error:
            raise Timeout(f"it did not end within {timeout:g} s") from error
        except (OSError, asyncssh.Error) as error:
            raise _lost(str(error)) from error


async def _finish(
    channel: "asyncssh.SSHClientChannel[bytes]", session: _Session, stdin: AsyncIterable[bytes] | None
) -> int:
    feeding = asyncio.ensure_future(_feed(channel, session, stdin))
    try:
        waited: set[asyncio.Future[None] | asyncio.Future[int]] = {feeding, session.ended}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()
        status = await asyncio.shield(session.ended)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_OUTPUT_S):
            await session.closed.wait()
    return status


async def _feed(
    channel: "asyncssh.SSHClientChannel[bytes]", session: _Session, stdin: AsyncIterable[bytes] | None
) -> None:
    if stdin is not None:
        async for piece in stdin:
            for at in range(0, len(piece), _PIECE):
                await session.writable.wait()
                if session.ended.done():
                    return
                channel.write(piece[at : at + _PIECE])
    with contextlib.suppress(OSError):
        channel.write_eof()


def _lost(why: str) -> GuestUnreachable:
    return GuestUnreachable(f"the guest's SSH connection was lost: {why}", hint="`banger vm logs` shows its console")


@contextlib.asynccontextmanager
async def login(streams: Streams, host_keys: Sequence[str], key: Path) -> AsyncIterator[Shell]:
    """Log in as root over a stream to the guest's sshd, which is dropped at the end.

    `host_keys` are lines of OpenSSH's, one of which the guest must prove to have; `key` is a private key's file.
    Raises `GuestUnreachable`.
    """
    ours, theirs = socket.socketpair()
    pumps: list[asyncio.Task[None]] = []
    try:
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        pumps = [asyncio.create_task(_pump(streams[0], writer)), asyncio.create_task(_pump(reader, streams[1]))]
        connection = await _connect(ours, host_keys, key)
        try:
            yield Shell(connection)
        finally:
            connection.abort()
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(GONE_S):
                    await connection.wait_closed()
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await drop(streams[1])
        if pumps:
            await drop(writer)
        theirs.close()
        ours.close()


async def _connect(sock: socket.socket, host_keys: Sequence[str], key: Path) -> asyncssh.SSHClientConnection:
    trusted = []
    for line in host_keys:
        with contextlib.suppress(asyncssh.KeyImportError):  # a kind that is not known here
            trusted.append(asyncssh.import_public_key(line))
    try:
        return await asyncssh.connect(
            "guest",  # a name is needed; nothing looks it up
            sock=sock,
            config=None,
            known_hosts=(trusted, [], []),
            username="root",
            client_keys=[str(key)],
            agent_path=None,
            agent_forwarding=False,
            preferred_auth="publickey",
            login_timeout=LOGIN_S,
            compression_algs=None,
        )
    except (OSError, asyncssh.Error) as error:
        raise GuestUnreachable(
            f"the guest lets nobody in over SSH: {error}", hint="`banger vm logs` shows its console"
        ) from error


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes until either side ends; the other is told."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()

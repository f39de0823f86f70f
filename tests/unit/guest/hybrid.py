"""A guest without a machine: the real agent as a child process, behind a front that speaks hybrid vsock."""

import asyncio
import contextlib
import select
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import banger.guest.agent
from banger.guest.channel import Guest
from banger.system.process import kill_group, spawn

AGENT = Path(banger.guest.agent.__file__).with_name("__main__.py")
_DEADLINE = 20.0

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def drop(writer: asyncio.StreamWriter) -> None:
    """Close a stream and wait until it is."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(256 * 1024):
            sink.write(data)
            await sink.drain()
        sink.write_eof()


def _left(writer: asyncio.StreamWriter) -> bool:
    """Whether the client has closed its socket, and not only ended its direction."""
    poller = select.poll()
    poller.register(writer.get_extra_info("socket").fileno(), 0)
    return bool(poller.poll(0))


async def splice(agent: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client: the handshake, then bytes both ways, half-closes too, until the client or the agent has closed."""
    if await reader.readline() != b"CONNECT 1024\n":
        return
    inner_reader, inner_writer = await asyncio.open_unix_connection(agent, limit=256 * 1024)
    writer.write(b"OK 1073741824\n")
    try:
        back = asyncio.create_task(_copy(inner_reader, writer))
        await _copy(reader, inner_writer)
        while not back.done() and not _left(writer):  # noqa: ASYNC110 (a hang-up is no event of asyncio)
            await asyncio.sleep(0.01)
        inner_writer.transport.abort()
        await back
    finally:
        await drop(inner_writer)


@contextlib.asynccontextmanager
async def listening(path: Path, handler: Handler) -> AsyncIterator[None]:
    """A Unix socket server whose open connections end with it."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            tasks.discard(task)
            await drop(writer)

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        path.unlink(missing_ok=True)


async def _wait_for_socket(path: Path) -> None:
    async with asyncio.timeout(_DEADLINE):
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(path)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                await drop(writer)
                return


@contextlib.asynccontextmanager
async def agent(folder: Path, *options: str, python: str = sys.executable, main: Path = AGENT) -> AsyncIterator[Path]:
    """The real agent on a Unix socket of its own: yields the socket's path."""
    path = folder / "agent.sock"
    argv = [python, "-I", "-S", "-B", str(main), "--unix", str(path), *options]
    child = await spawn(argv, stderr=2)
    try:
        await _wait_for_socket(path)
        yield path
        assert child.returncode is None, "the agent died"
    finally:
        await kill_group(child)
        path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def guest(folder: Path, *options: str, python: str = sys.executable, main: Path = AGENT) -> AsyncIterator[Guest]:
    """The real agent, as the host sees it."""
    front = folder / "v.sock"
    async with (
        agent(folder, *options, python=python, main=main) as inner,
        listening(front, lambda reader, writer: splice(inner, reader, writer)),
    ):
        yield Guest(front)

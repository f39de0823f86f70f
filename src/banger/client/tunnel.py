"""Tunnels to a guest's TCP ports for an event loop: `guest.open_tunnel` without a thread, and with a second look.

A tunnel is a non-blocking socket and the bytes that came behind the agent's answer.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple

from banger.client import guest
from banger.client.api import Client
from banger.guest import protocol
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, GuestUnreachable

_READ = 4096


class Tunnel(NamedTuple):
    """A stream to a port of the guest; `early` is what of it has been read already."""

    stream: socket.socket
    early: bytes = b""


async def open_tunnel(vm: VmDocument, host: str, port: int) -> Tunnel:
    """A tunnel to a TCP port as the guest sees it. Raises `Conflict` when nothing listens, `GuestUnreachable`."""
    guest.check_running(vm)
    asked = guest.connect_request(host, port)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with guest.closing_on_failure(stream):
        return Tunnel(stream, await _connect(vm, stream, asked))


async def _connect(vm: VmDocument, stream: socket.socket, asked: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(guest.CONNECT_S):
            await loop.sock_connect(stream, vm["vsock_socket"])
            await loop.sock_sendall(stream, guest.HANDSHAKE)
            line, early = await _until(stream, b"", b"\n", guest.LINE_MAX)
        guest.check_handshake(vm, line)
        async with asyncio.timeout(guest.ANSWER_S):
            await loop.sock_sendall(stream, asked)
            head, early = await _until(stream, early, guest.HEAD_END, protocol.MAX_HEAD)
            status = guest.status_of(vm, head)
            if status != b"200":
                raise guest.refusal(vm, status, await _rest(stream, early))
    except OSError as error:  # TimeoutError is one
        raise guest.silent(vm, error) from error
    return early


async def _until(stream: socket.socket, data: bytes, end: bytes, limit: int) -> tuple[bytes, bytes]:
    """What comes up to and with `end`, and what came behind it."""
    loop = asyncio.get_running_loop()
    while (cut := data.find(end)) < 0:
        if len(data) > limit:
            raise ConnectionError("its answer has no end")
        more = await loop.sock_recv(stream, _READ)
        if not more:
            raise ConnectionError("it closed the connection")
        data += more
    return data[: cut + len(end)], data[cut + len(end) :]


async def _rest(stream: socket.socket, body: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    while len(body) <= protocol.MAX_HEAD and (data := await loop.sock_recv(stream, _READ)):
        body += data
    return body


class Dialer:
    """Opens tunnels into one VM. The daemon is asked about the VM again only when a dial has failed."""

    def __init__(self, client: Client, vm: VmDocument) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self.vm = vm

    async def open(self, host: str, port: int) -> Tunnel:
        """Raises what `open_tunnel` does; `NotFound` when the VM has been deleted."""
        known, failed = self.vm, None
        if known["state"] == "running":
            try:
                return await open_tunnel(known, host, port)
            except GuestUnreachable as error:
                failed = error
        await self._look_again(known)
        if failed is not None and _place(self.vm) == _place(known):
            raise failed
        return await open_tunnel(self.vm, host, port)

    async def _look_again(self, known: VmDocument) -> None:
        """Ask once for all the dials that failed on the same document."""
        async with self._lock:
            if self.vm is known:
                self.vm = await _in_thread(lambda: self._client.show_vm(known["id"]))


def _place(vm: VmDocument) -> tuple[str, str]:
    return vm["state"], vm["vsock_socket"]


async def _in_thread(ask: Callable[[], VmDocument]) -> VmDocument:
    """The answer of a blocking call, in a thread that nobody has to wait for at the end of the program."""
    answer: Future[VmDocument] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except (BangerError, OSError, InvalidStateError) as error:
            if not answer.cancelled():
                answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(answer)

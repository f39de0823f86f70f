"""A command in a guest, over a WebSocket: stdin, stdout, stderr, signals and window size, in one thread."""

import json
import os
import select
import signal
import socket
from collections.abc import Callable
from urllib.parse import quote

import msgspec
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from banger.client.transport import CHUNK, DaemonLost
from banger.model.errors import from_dict
from banger.model.guest import ExecExit, ExecRequest, Stream

STDIN_CHUNK = 65536
UNSENT_MAX = 1 << 20


class ExecSession:
    """One exec. `run` returns the command's exit; both outputs go to the given descriptors, byte for byte."""

    def __init__(self, stream: socket.socket, reference: str, request: ExecRequest) -> None:
        self._socket = stream
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._unsent = bytearray(
            self._protocol.send(Request(host="banger", target=f"/vms/{quote(reference, safe='')}/exec"))
        )
        self._request = request
        self._accepted = False
        self._exit: ExecExit | None = None
        self._partial = bytearray()

    def run(self, *, stdin: int | None, stdout: int = 1, stderr: int = 2, wake: int | None = None,
            woken: Callable[[], None] = lambda: None) -> ExecExit:  # fmt: skip
        """Relay until the command ends. `wake` is a descriptor that becomes readable when `woken` shall be called.

        Raises `DaemonLost` or what the daemon reports. Closing the connection ends the command.
        """
        self._outputs = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
        self._socket.setblocking(False)
        try:
            while self._exit is None:
                self._turn(stdin if self._accepted and len(self._unsent) < UNSENT_MAX else None, wake, woken)
                if self._input_ended:
                    stdin = None
            return self._exit
        except (LocalProtocolError, RemoteProtocolError) as error:
            raise DaemonLost(f"the daemon broke the protocol: {error}") from error
        finally:
            self._socket.close()

    _input_ended = False

    def _turn(self, stdin: int | None, wake: int | None, woken: Callable[[], None]) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        for descriptor in (stdin, wake):
            if descriptor is not None:
                poller.register(descriptor, select.POLLIN)
        ready = dict(poller.poll())
        if self._unsent and ready.get(self._socket.fileno(), 0) & select.POLLOUT:
            del self._unsent[: self._socket.send(self._unsent)]
        if wake is not None and wake in ready:
            woken()
        if stdin is not None and stdin in ready:
            data = os.read(stdin, STDIN_CHUNK)
            self._input_ended = not data
            self.send(Stream.STDIN, data)
        if ready.get(self._socket.fileno(), 0) & ~select.POLLOUT:
            self._receive()

    def send(self, kind: Stream, payload: bytes) -> None:
        """Queue one frame; frames before the daemon's acceptance are dropped, as nothing runs yet."""
        if self._accepted:
            self._unsent += self._protocol.send(BytesMessage(data=bytes((kind,)) + payload))

    def signal(self, number: int) -> None:
        self.send(Stream.SIGNAL, json.dumps({"signal": signal.Signals(number).name[3:]}).encode())

    def resize(self, rows: int, cols: int) -> None:
        self.send(Stream.RESIZE, json.dumps({"rows": rows, "cols": cols}).encode())

    def _receive(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            raise DaemonLost(f"the daemon closed the connection: {error.strerror}") from error
        self._protocol.receive_data(data or None)
        for event in self._protocol.events():
            self._handle(event)

    def _handle(self, event: object) -> None:
        if isinstance(event, AcceptConnection):
            self._accepted = True
            self._unsent += self._protocol.send(Message(data=msgspec.json.encode(self._request).decode()))
        elif isinstance(event, TextMessage):
            raise from_dict(json.loads(event.data)["error"])
        elif isinstance(event, BytesMessage):
            self._partial += event.data
            if event.message_finished:
                message, self._partial = bytes(self._partial), bytearray()
                self._frame(Stream(message[0]), message[1:])
        elif isinstance(event, Ping):
            self._unsent += self._protocol.send(event.response())
        elif isinstance(event, CloseConnection) and self._exit is None:
            raise DaemonLost("the daemon ended the connection before the command ended", hint="banger daemon status")

    def _frame(self, kind: Stream, payload: bytes) -> None:
        if kind is Stream.EXIT:
            self._exit = msgspec.json.decode(payload, type=ExecExit)
        elif kind in self._outputs:
            view = memoryview(payload)
            while view:
                view = view[os.write(self._outputs[kind], view) :]

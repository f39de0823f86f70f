"""The vhost-user control channel: messages and their descriptors (vhost-user, "Message Specification")."""

import os
import socket
import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<III")
_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3
_MAX_BODY = 4096
_MAX_FDS = 8
_ANCILLARY = socket.CMSG_LEN(_MAX_FDS * struct.calcsize("@i"))


class FrontEndError(Exception):
    """The front end broke the protocol or could not be answered; the device is of no more use."""


class HungUp(Exception):
    """The front end closed the channel: QEMU ended or took the device away."""


@dataclass
class Message:
    """A request. Whoever keeps a descriptor takes it out of `fds`; `close` closes the others."""

    request: int
    flags: int
    body: bytes
    fds: list[int]

    @property
    def wants_ack(self) -> bool:
        return bool(self.flags & _NEED_REPLY)

    def take_fd(self) -> int:
        """The first descriptor, or -1 if there is none."""
        return self.fds.pop(0) if self.fds else -1

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class ControlChannel:
    """Reads messages without ever waiting, however they are cut into pieces.

    Not by `socket.recv_fds`, which ignores its flags: the descriptors would be inheritable.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._data = b""
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> Message | None:
        """The next message, None if it is not here yet. Raises `FrontEndError`, `HungUp`."""
        while missing := self._missing():
            try:
                data, ancillary, flags, _address = self._sock.recvmsg(missing, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return None
            except OSError as error:
                raise HungUp(f"the control channel failed: {error.strerror}") from error
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds += [fd for (fd,) in struct.iter_unpack("@i", content)]
            if not data:
                raise HungUp("the front end closed the control channel")
            if flags & socket.MSG_CTRUNC or len(self._fds) > _MAX_FDS:
                raise FrontEndError("a message carries too many descriptors")
            self._data += data
        request, flags, _size = _HEADER.unpack_from(self._data)
        message = Message(request, flags, self._data[_HEADER.size :], self._fds)
        self._data, self._fds = b"", []
        return message

    def _missing(self) -> int:
        """Bytes to the end of the header or, once that is here, of the message."""
        if len(self._data) < _HEADER.size:
            return _HEADER.size - len(self._data)
        _request, flags, size = _HEADER.unpack_from(self._data)
        if flags & 3 != _VERSION or size > _MAX_BODY:
            raise FrontEndError(f"a message header is malformed: flags {flags:#x}, {size} bytes")
        return int(_HEADER.size + size - len(self._data))

    def reply(self, request: int, body: bytes) -> None:
        """Answer a request. Raises `FrontEndError` if the front end does not take it."""
        data = _HEADER.pack(request, _VERSION | _REPLY, len(body)) + body
        try:
            sent = self._sock.send(data)
        except OSError as error:
            raise FrontEndError(f"the front end takes no reply: {error.strerror}") from error
        if sent < len(data):
            raise FrontEndError("the front end reads no replies")

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        self._sock.close()

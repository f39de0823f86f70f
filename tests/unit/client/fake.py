"""A guest without a machine: behind a hybrid vsock socket, an agent that says what a test wants said."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from banger.model.documents import VmDocument

OK = b"OK 1073741824\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA" + "B" * 42

Serve = Callable[[socket.socket], None]


def document(path: Path, **changes: Any) -> VmDocument:
    """A VM that runs, whose vsock socket is `path`."""
    fields: dict[str, Any] = {
        "id": "0123456789ab",
        "name": "demo",
        "state": "running",
        "network": "user",
        "guest_ip": "10.0.2.15",
        "vsock_socket": str(path),
        "engine_pid": None,
    }
    return cast(VmDocument, fields | changes)


def answer(status: str, body: object = None) -> bytes:
    text = json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text


class Guest:
    """`documents` is what GET answers; CONNECT leads to this host's own ports, as the guest's would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents: dict[str, object] = {"/info": {"ssh_host_keys": [KEY]}}
        self.requests: list[str] = []
        self.vm = document(path)

    def serve(self, stream: socket.socket) -> None:
        if read_until(stream, b"\n") != b"CONNECT 1024\n":
            return
        stream.sendall(OK)
        head = read_until(stream, b"\r\n\r\n").decode()
        self.requests.append(head)
        method, target, _ = head.split(" ", 2)
        if method == "CONNECT":
            self._connect(stream, target)
        elif target in self.documents:
            stream.sendall(answer("200 OK", self.documents[target]))
        else:
            stream.sendall(answer("404 Not Found", {"error": f"there is no {target}"}))

    def _connect(self, stream: socket.socket, target: str) -> None:
        host, _, port = target.rpartition(":")
        try:
            peer = socket.create_connection((host.strip("[]"), int(port)), 5)
        except OSError as error:
            stream.sendall(answer("502 Bad Gateway", {"error": f"cannot connect to {target}: {error.strerror}"}))
            return
        peer.settimeout(None)
        stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with peer:
            back = threading.Thread(target=copy, args=(peer, stream))
            back.start()
            copy(stream, peer)
            back.join()


def copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def read_until(stream: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        byte = stream.recv(1)
        if not byte:
            raise ConnectionError
        data += byte
    return data


@contextlib.contextmanager
def listening(path: Path, serve: Serve) -> Iterator[None]:
    """A Unix socket whose every connection is served in a thread; all of them have ended when this has."""
    streams: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            serve(stream)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = listener.accept()
                streams.append(stream)
                threads.append(threading.Thread(target=one, args=(stream,)))
                threads[-1].start()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(128)
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join(10)
            for stream in streams:
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def guest(folder: Path) -> Iterator[Guest]:
    made = Guest(folder / "v.sock")
    with listening(made.path, made.serve):
        yield made


@contextlib.contextmanager
def service(serve: Serve, port: int = 0) -> Iterator[int]:
    """A TCP service of the guest, on this host's loopback: yields its port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        threads: list[threading.Thread] = []

        def one(stream: socket.socket) -> None:
            with stream, contextlib.suppress(OSError):
                serve(stream)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threads.append(threading.Thread(target=one, args=(listener.accept()[0],)))
                    threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join(10)
            for thread in threads:
                thread.join(10)


def echo(stream: socket.socket) -> None:
    """Send back what comes, to its end."""
    while data := stream.recv(1 << 16):
        stream.sendall(data)

"""Streams to a guest's agent straight over the VM's vsock socket: files and tunnels, whatever becomes of the daemon.

The guest is hostile: whatever it answers is bounded in size and time. docs/guest.md describes the agent's API.
`client.tunnel` is the same for an event loop, over the parts that do no I/O here.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from banger.guest import protocol
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, Conflict, GuestUnreachable, Invalid, Unsupported
from banger.model.text import harmless

CONNECT_S = 5.0
ANSWER_S = 15.0
BODY_MAX = protocol.MAX_BODY
LINE_MAX = 32  # "OK <port>\n"
HANDSHAKE = b"CONNECT %d\n" % protocol.AGENT_PORT
HEAD_END = b"\r\n\r\n"
_NEXT = {"paused": "resume", "stopped": "start", "failed": "start"}


def dial_agent(vm: VmDocument) -> socket.socket:
    """A blocking stream to the agent, after the hybrid handshake (Firecracker docs/vsock.md, "Host-Initiated").

    Raises `Conflict` when the VM does not run, `GuestUnreachable`.
    """
    check_running(vm)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with closing_on_failure(stream):
        try:
            stream.settimeout(CONNECT_S)
            stream.connect(vm["vsock_socket"])
            stream.sendall(HANDSHAKE)
            check_handshake(vm, _until(stream, b"\n", LINE_MAX, time.monotonic() + CONNECT_S))
        except OSError as error:
            raise silent(vm, error) from error
    return stream


@contextlib.contextmanager
def closing_on_failure(stream: socket.socket) -> Iterator[None]:
    """A stream that is closed unless the block ends well."""
    with contextlib.ExitStack() as on_failure:
        on_failure.enter_context(stream)
        yield
        on_failure.pop_all()


def open_tunnel(vm: VmDocument, host: str, port: int, *, wait_s: float = 0.0) -> socket.socket:
    """A blocking stream, without a time limit, to a TCP port as the guest sees it (RFC 9110, 9.3.6 CONNECT).

    `wait_s` is how long the agent tries when nothing listens yet. Raises `Conflict` when nothing does, else as
    `dial_agent`.
    """
    stream = _ask(vm, connect_request(host, port, wait_s), b"200", time.monotonic() + ANSWER_S + wait_s)
    stream.settimeout(None)
    return stream


def upgrade(vm: VmDocument, path: str, token: str, document: Mapping[str, object]) -> socket.socket:
    """A blocking stream, without a time limit, after `POST path` with `Upgrade: token` was answered 101."""
    body = json.dumps(document).encode()
    headers = {"Connection": "Upgrade", "Upgrade": token, "Content-Length": str(len(body))}
    stream = _ask(vm, request("POST", path, headers) + body, b"101", time.monotonic() + ANSWER_S)
    stream.settimeout(None)
    return stream


def get_document(vm: VmDocument, path: str) -> dict[str, Any]:
    """The JSON object that `GET path` answers. Raises as `dial_agent`; `Unsupported` when the agent is too old."""
    deadline = time.monotonic() + ANSWER_S
    stream = _ask(vm, request("GET", path, {}), b"200", deadline)
    try:
        body = _rest(stream, deadline)
    except OSError as error:
        raise silent(vm, error) from error
    finally:
        stream.close()
    document = _object(body)
    if document is None or len(body) > BODY_MAX:
        raise unreachable(vm, f"its agent's answer to {path} makes no sense")
    return document


def _ask(vm: VmDocument, asked: bytes, expected: bytes, deadline: float) -> socket.socket:
    """Send a request and return the stream, its next byte being the one behind the answer's head."""
    stream = dial_agent(vm)
    with closing_on_failure(stream):
        try:
            stream.settimeout(ANSWER_S)
            stream.sendall(asked)
            status = status_of(vm, _until(stream, HEAD_END, protocol.MAX_HEAD, deadline))
            if status != expected:
                raise refusal(vm, status, _rest(stream, deadline))
        except OSError as error:
            raise silent(vm, error) from error
    return stream


def _wait(stream: socket.socket, deadline: float) -> None:
    """Let the next call on the stream last until the deadline. Raises TimeoutError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    stream.settimeout(left)


def _until(stream: socket.socket, end: bytes, limit: int, deadline: float) -> bytes:
    """Exactly the bytes up to and with `end`, none beyond: what follows belongs to the stream's next user."""
    data = b""
    while not data.endswith(end):
        _wait(stream, deadline)
        # what is there is looked at first, so that only what belongs to the head is taken
        seen = stream.recv(limit, socket.MSG_PEEK)
        if not seen:
            raise ConnectionError("it closed the connection")
        cut = (data + seen).find(end)
        data += stream.recv(len(seen) if cut < 0 else cut + len(end) - len(data))
        if len(data) > limit:
            raise ConnectionError("its answer has no end")
    return data


def _rest(stream: socket.socket, deadline: float) -> bytes:
    """What comes until the end of the stream; one byte more than `BODY_MAX` when it is too long."""
    body = bytearray()
    while len(body) <= BODY_MAX:
        _wait(stream, deadline)
        data = stream.recv(BODY_MAX + 1 - len(body))
        if not data:
            break
        body += data
    return bytes(body)


# what does no I/O


def check_running(vm: VmDocument) -> None:
    """Raise `Conflict`, with what to do, unless the VM runs."""
    state = vm["state"]
    if state != "running":
        hint = (
            f"banger vm {_NEXT[state]} {vm['name']}" if state in _NEXT else "`banger operation list` shows what goes on"
        )
        why = f": {problem}" if (problem := vm.get("problem")) else ""
        raise Conflict(f"{vm['name']} is {state}, not running{why}", hint=hint)


def check_handshake(vm: VmDocument, line: bytes) -> None:
    """Raise `GuestUnreachable` unless the engine said that the agent's port is connected."""
    if not line.startswith(b"OK "):
        raise unreachable(vm, "its agent does not listen")


def request(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def connect_request(host: str, port: int, wait_s: float = 0.0) -> bytes:
    """Raises `Invalid` for a host or port that cannot be."""
    # a host's name goes into a line of HTTP: nothing in it may end that line or begin a new word
    if not 0 < len(host) < 256 or not host.isascii() or not all(c.isalnum() or c in ".:-_%" for c in host):
        raise Invalid(f"{host!r} is no host", hint="give a name or an address as the guest knows it")
    if not 1 <= port <= 65535:
        raise Invalid(f"{port} is no TCP port", hint="choose from 1 to 65535")
    name = f"[{host}]" if ":" in host else host
    return request("CONNECT", f"{name}:{port}", {"Banger-Wait": f"{wait_s:g}"} if wait_s else {})


def status_of(vm: VmDocument, head: bytes) -> bytes:
    """The three digits of an answer's status."""
    version, _, rest = head.partition(b" ")
    status = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(status) != 3 or not status.isdigit():
        raise unreachable(vm, "its agent does not speak HTTP")
    return status


def refusal(vm: VmDocument, status: bytes, body: bytes) -> BangerError:
    """The error for an answer that is not the expected one."""
    text = harmless(str((_object(body) or {}).get("error", "")))
    code = int(status)
    if code == 404:
        return Unsupported(
            f"the agent in {vm['name']} is too old for this",
            hint="make its image again: `banger image bootstrap debian --name NEW`",
        )
    if code == 400:
        return Invalid(f"{vm['name']} refused: {text}")
    if code in (502, 504):
        return Conflict(f"{vm['name']}: {text}", hint=f"`banger vm ports {vm['name']}` shows what listens")
    return unreachable(vm, f"its agent answered {code}: {text}")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def silent(vm: VmDocument, error: OSError) -> GuestUnreachable:
    why = "it took too long" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return unreachable(vm, f"its agent does not answer: {why}")


def unreachable(vm: VmDocument, why: str) -> GuestUnreachable:
    return GuestUnreachable(f"{vm['name']} cannot be reached: {why}", hint=f"banger vm health {vm['name']}")

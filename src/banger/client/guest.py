"""Streams to a guest's agent straight over the VM's vsock socket: files and tunnels, whatever becomes of the daemon.

The guest is hostile: whatever it answers is bounded in size and time. docs/guest.md describes the agent's API.
"""

import json
import socket
import time
from collections.abc import Mapping

from banger.guest import protocol
from banger.model.documents import VmDocument
from banger.model.errors import Conflict, GuestUnreachable, Invalid, Unsupported

CONNECT_S = 5.0
ANSWER_S = 15.0
BODY_MAX = 64 * 1024
_LINE_MAX = 32  # "OK <port>\n"


def dial_agent(vm: VmDocument) -> socket.socket:
    """A blocking stream to the agent, after the hybrid handshake (Firecracker docs/vsock.md, "Host-Initiated").

    Raises `Conflict` when the VM does not run, `GuestUnreachable`.
    """
    if vm["state"] != "running":
        verb = "resume" if vm["state"] == "paused" else "start"
        raise Conflict(f"{vm['name']} is {vm['state']}, not running", hint=f"banger vm {verb} {vm['name']}")
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(CONNECT_S)
        stream.connect(vm["vsock_socket"])
        stream.sendall(b"CONNECT %d\n" % protocol.AGENT_PORT)
        line = _until(stream, b"\n", _LINE_MAX, time.monotonic() + CONNECT_S)
    except OSError as error:
        stream.close()
        raise _unreachable(vm, f"its agent does not answer: {error}") from error
    if not line.startswith(b"OK "):
        stream.close()
        raise _unreachable(vm, "its agent does not listen")
    return stream


def open_tunnel(vm: VmDocument, host: str, port: int, *, wait_s: float = 0.0) -> socket.socket:
    """A blocking stream, without a time limit, to a TCP port as the guest sees it (RFC 9110, 9.3.6 CONNECT).

    `wait_s` is how long the agent tries when nothing listens yet. Raises `Conflict` when nothing does, else as
    `dial_agent`.
    """
    headers = {"Banger-Wait": f"{wait_s:g}"} if wait_s else {}
    name = f"[{host}]" if ":" in host else host
    return _ask(vm, "CONNECT", f"{name}:{port}", headers, b"", wait_s)


def upgrade(vm: VmDocument, path: str, token: str, document: Mapping[str, object]) -> socket.socket:
    """A blocking stream, without a time limit, after `POST path` with `Upgrade: token` was answered 101."""
    body = json.dumps(document).encode()
    headers = {"Connection": "Upgrade", "Upgrade": token, "Content-Length": str(len(body))}
    return _ask(vm, "POST", path, headers, body, 0.0)


def _ask(
    vm: VmDocument, method: str, target: str, headers: Mapping[str, str], body: bytes, wait_s: float
) -> socket.socket:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    stream = dial_agent(vm)
    try:
        stream.settimeout(ANSWER_S)
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        deadline = time.monotonic() + ANSWER_S + wait_s
        head = _until(stream, b"\r\n\r\n", protocol.MAX_HEAD, deadline).decode("latin-1")
        status = head[9:12]
        if not head.startswith("HTTP/1.1 ") or not status.isdigit():
            raise _unreachable(vm, "its agent does not speak HTTP")
        if status not in ("101", "200"):
            raise _refused(vm, int(status), _rest(stream, deadline))
    except OSError as error:
        stream.close()
        raise _unreachable(vm, f"its agent does not answer: {error}") from error
    except BaseException:
        stream.close()
        raise
    stream.settimeout(None)
    return stream


def _until(stream: socket.socket, end: bytes, limit: int, deadline: float) -> bytes:
    """Exactly the bytes up to and with `end`, none beyond: what follows belongs to the stream's next user."""
    data = b""
    while not data.endswith(end):
        stream.settimeout(max(0.001, deadline - time.monotonic()))
        # what is there is looked at first, so that only what belongs to the head is taken
        seen = stream.recv(limit, socket.MSG_PEEK)
        if not seen or len(data) >= limit:
            raise ConnectionError("it closed the connection" if not seen else "its answer has no end")
        cut = (data + seen).find(end)
        data += stream.recv(len(seen) if cut < 0 else cut + len(end) - len(data))
    return data


def _rest(stream: socket.socket, deadline: float) -> str:
    """The "error" of a refusal, made harmless for a terminal."""
    body = b""
    while len(body) < BODY_MAX:
        stream.settimeout(max(0.001, deadline - time.monotonic()))
        data = stream.recv(BODY_MAX - len(body))
        if not data:
            break
        body += data
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    text = str(document.get("error", "")) if isinstance(document, dict) else ""
    return harmless(text)


def harmless(text: str) -> str:
    """A guest's words on one line, for a person's terminal: no control characters, bounded."""
    return "".join(character if character.isprintable() else "?" for character in text[:500])


def _refused(vm: VmDocument, status: int, text: str) -> Conflict | Invalid | Unsupported | GuestUnreachable:
    if status == 404:
        return Unsupported(
            f"the agent in {vm['name']} is too old for this",
            hint="make its image again: `banger image bootstrap debian --name NEW`",
        )
    if status == 400:
        return Invalid(f"the guest refused: {text}")
    if status in (502, 504):
        return Conflict(f"{vm['name']}: {text}", hint=f"`banger vm ports {vm['name']}` shows what listens")
    return _unreachable(vm, f"its agent answered {status}: {text}")


def _unreachable(vm: VmDocument, why: str) -> GuestUnreachable:
    return GuestUnreachable(f"{vm['name']} cannot be reached: {why}", hint=f"banger vm health {vm['name']}")

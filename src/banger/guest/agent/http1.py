"""HTTP/1.1 as far as the agent speaks it: one request per connection, every size and time bounded.

RFC 9112. No chunked bodies, no keep-alive, no continuation lines.
"""

from _socket import SHUT_WR, socket
from time import monotonic

from banger.guest.agent.jsonlite import decode, encode
from banger.guest.protocol import MAX_BODY, MAX_HEAD

REQUEST_SECONDS = 10.0  # to receive a whole request
ANSWER_SECONDS = 10.0  # to get an answer out
LINGER_SECONDS = 2.0  # for the peer to close after our last byte
LINGER_BYTES = 2 * MAX_BODY
MAX_HEADERS = 64

_REASONS = {101: "Switching Protocols", 200: "OK", 202: "Accepted", 400: "Bad Request", 403: "Forbidden",
            404: "Not Found", 405: "Method Not Allowed", 409: "Conflict", 413: "Content Too Large",
            426: "Upgrade Required", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
            501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}  # fmt: skip


class Refused(Exception):
    """A request that gets an error answer: HTTP status, one line of text, extra headers."""

    def __init__(self, status: int, text: str, headers: "dict[str, str] | None" = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers or {}


class Request:
    """Method, path, headers (names in lower case), body, and bytes that came after the body."""

    __slots__ = ("body", "headers", "method", "path", "rest")

    def __init__(self, method: str, path: str, headers: "dict[str, str]") -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = b""
        self.rest = b""


def read_request(sock: socket) -> Request:
    """Receive one request. Raises `Refused`, or OSError when the peer is gone or slow."""
    deadline = monotonic() + REQUEST_SECONDS
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > MAX_HEAD:
            raise Refused(431, f"the request's headers are longer than {MAX_HEAD} bytes")
        data += _receive(sock, deadline)
    if end > MAX_HEAD:
        raise Refused(431, f"the request's headers are longer than {MAX_HEAD} bytes")
    request = parse_head(bytes(data[:end]))
    length = body_length(request.headers)
    del data[: end + 4]
    while len(data) < length:
        data += _receive(sock, deadline)
    request.body = bytes(data[:length])
    request.rest = bytes(data[length:])
    return request


def _receive(sock: socket, deadline: float) -> bytes:
    sock.settimeout(max(0.001, deadline - monotonic()))
    data = sock.recv(65536)
    if not data:
        raise ConnectionError("the peer closed within a request")
    return data


def parse_head(head: bytes) -> Request:
    """The request line and headers, without the blank line. Raises `Refused` 400 or 431."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(400, "the first line is not METHOD PATH HTTP/1.1")
    method, path, _version = words
    # RFC 9112, 3.2.3: only CONNECT names an authority, every other method a path
    if not method.isalpha() or not method.isascii() or (method != "CONNECT" and not path.startswith("/")):
        raise Refused(400, "the first line is not METHOD PATH HTTP/1.1")
    if len(lines) > MAX_HEADERS:
        raise Refused(431, f"there are more than {MAX_HEADERS - 1} headers")
    return Request(method, path, _headers(lines[1:]))


def _headers(lines: "list[str]") -> "dict[str, str]":
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or not name.replace("-", "").replace("_", "").isalnum():
            raise Refused(400, "a header line is malformed")
        if "\n" in value or "\r" in value or "\0" in value:
            raise Refused(400, "a header's value holds a control character")
        name = name.lower()
        if name in headers and name in ("content-length", "upgrade", "connection"):
            raise Refused(400, f"the header {name} appears twice")
        headers[name] = value.strip(" \t")
    return headers


def body_length(headers: "dict[str, str]") -> int:
    """Bytes of body to expect. Raises `Refused` 400, 413 or 501."""
    if "transfer-encoding" in headers:
        raise Refused(501, "transfer encodings are not supported; send Content-Length")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise Refused(400, "Content-Length is not a number")
    if len(text) > 12 or int(text) > MAX_BODY:
        raise Refused(413, f"the body is longer than {MAX_BODY} bytes")
    return int(text)


def respond(sock: socket, status: int, document: object, headers: "dict[str, str] | None" = None) -> None:
    """Send a JSON answer. Raises OSError when the peer is gone or does not read."""
    body = encode(document).encode() + b"\n"
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    fields.update(headers or {})
    send_all(sock, _head(status, fields) + body)


def switch_protocols(sock: socket, token: str) -> None:
    """Send 101; the stream belongs to the named protocol from here on."""
    send_all(sock, _head(101, {"Connection": "Upgrade", "Upgrade": token}))


def open_stream(sock: socket) -> None:
    """Send the 200 of a CONNECT, which has no body: what follows are the tunnel's bytes (RFC 9110, 9.3.6)."""
    send_all(sock, _head(200, {}))


def document(body: bytes, fields: "frozenset[str]") -> "dict[str, object]":
    """The JSON object in a body, without nulls. Raises `Refused` 400 when it is none or has other fields."""
    try:
        found = decode(body)
    except ValueError as error:
        raise Refused(400, str(error)) from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is not a JSON object")
    unknown = sorted(set(found) - fields)
    if unknown:
        raise Refused(400, f"unknown field {unknown[0][:100]}")
    return {name: value for name, value in found.items() if value is not None}


def _head(status: int, fields: "dict[str, str]") -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
    lines += [name + ": " + value for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def send_all(sock: socket, data: bytes) -> None:
    """Send everything within `ANSWER_SECONDS`."""
    sock.settimeout(ANSWER_SECONDS)
    sock.sendall(data)


def finish(sock: socket, seconds: float = LINGER_SECONDS) -> None:
    """End our direction, then let the peer close first: closing on unread bytes could cost it our answer."""
    deadline = monotonic() + seconds
    left = LINGER_BYTES
    try:
        sock.shutdown(SHUT_WR)
        while left > 0 and (wait := deadline - monotonic()) > 0:
            sock.settimeout(wait)
            data = sock.recv(65536)
            if not data:
                return
            left -= len(data)
    except OSError:
        return  # it left in its own way

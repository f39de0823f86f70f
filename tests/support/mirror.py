"""A mirror on loopback that knows ranges, and that can be told to misbehave."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Mirror:
    """What is served, what was asked, and what goes wrong.

    cuts    how many bytes of the body each of the next answers sends before the connection ends
    stall   send half of the body, then nothing until the test's end
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    lengths: bool = True
    wrong_part: bool = False
    stall: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    mirror: Mirror

    def do_GET(self) -> None:
        mirror, wanted = self.mirror, self.headers.get("Range", "")
        mirror.asked.append((self.path, wanted))
        if self.path in mirror.redirects:
            self.send_response(302)
            self.send_header("Location", mirror.redirects[self.path])
            self.end_headers()
        elif self.path not in mirror.files:
            self.send_error(404)
        else:
            self._send(mirror.files[self.path], re.fullmatch(r"bytes=(\d+)-", wanted))

    def _send(self, body: bytes, wanted: "re.Match[str] | None") -> None:
        mirror, start = self.mirror, int(wanted[1]) if wanted and self.mirror.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        told = start + 1 if mirror.wrong_part else start
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {told}-{len(body) - 1}/{len(body)}")
        if mirror.lengths:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = mirror.cuts.pop(0) if mirror.cuts else None
        if mirror.stall:
            self.wfile.write(body[start : start + (len(body) - start) // 2])
            mirror.stalled.set()
            mirror.closing.wait()
        else:
            self.wfile.write(body[start:] if cut is None else body[start : start + cut])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what was asked is in `asked`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is what some tests want."""


@contextmanager
def mirror() -> Iterator[Mirror]:
    """A running mirror."""
    made = Mirror()
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"mirror": made})) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield made
        finally:
            made.closing.set()
            server.shutdown()
            thread.join()

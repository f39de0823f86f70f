"""urllib with three differences: connections can be broken off from outside, connecting has a deadline of its own,
and an encrypted address never leads to a plain one. Proxies are those of the environment.
"""

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPMessage
from typing import IO, Any

CONNECT_S = 15.0
Connected = Callable[[socket.socket], None]


class _Plain(http.client.HTTPConnection):
    def __init__(self, connected: Connected, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connected = connected

    def connect(self) -> None:
        stall_s, self.timeout = self.timeout, CONNECT_S
        super().connect()
        self.sock.settimeout(stall_s)
        self._connected(self.sock)


class _Encrypted(http.client.HTTPSConnection):
    def __init__(self, connected: Connected, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connected = connected

    def connect(self) -> None:
        stall_s, self.timeout = self.timeout, CONNECT_S
        super().connect()
        self.sock.settimeout(stall_s)
        self._connected(self.sock)


class _PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, connected: Connected) -> None:
        super().__init__()
        self._connected = connected

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Plain, self._connected), req)


class _EncryptedHandler(urllib.request.HTTPSHandler):
    def __init__(self, connected: Connected) -> None:
        super().__init__()
        self._connected = connected

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Encrypted, self._connected), req, context=ssl.create_default_context())


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        scheme = newurl.split(":", 1)[0].lower()
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"leads to {newurl}, which is not safe", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener(connected: Connected) -> urllib.request.OpenerDirector:
    """Opens http and https; `connected` gets each socket once it is connected, and may raise to give up."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _PlainHandler(connected),
        _EncryptedHandler(connected),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director

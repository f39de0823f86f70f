"""The agent's server: listens on vsock, one thread per connection, and answers the routes."""

import _socket
import os
import sys
from _thread import allocate_lock, start_new_thread
from time import sleep

from banger.guest.agent import http1
from banger.guest.agent.health import boot_id, report
from banger.guest.protocol import AGENT_PORT, EXEC_UPGRADE, FILES_UPGRADE, HOST_CID, READY_PORT, READY_WORD

MAX_CONNECTIONS = 256
READY_SECONDS = 5.0
_ANY_CID = 0xFFFFFFFF  # VMADDR_CID_ANY


class Options:
    """`--unix PATH` listens there instead of on vsock; a shutdown then needs `--shutdown-program PATH`.

    `--root DIR`, for tests, takes files and programs below DIR and leaves the kernel's own state alone.
    """

    def __init__(self, arguments: "list[str]") -> None:
        given: dict[str, str] = {}
        for option, value in [arguments[at : at + 2] for at in range(0, len(arguments) // 2 * 2, 2)]:
            given[option] = value
        if len(arguments) % 2 or not set(given) <= {"--unix", "--shutdown-program", "--root"}:
            raise SystemExit("usage: banger-agent [--unix PATH] [--shutdown-program PROGRAM] [--root DIR]")
        self.unix = given.get("--unix")
        self.shutdown_program = given.get("--shutdown-program")
        self.root = given.get("--root", "")


class Server:
    """Accepts connections and serves each in a thread of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._open = 0
        self._lock = allocate_lock()
        self._listener = _listen(options.unix)

    def run(self) -> None:
        """Serve until the process is ended."""
        if self._options.unix is None:
            start_new_thread(_announce, ())
        while True:
            try:
                fd, address = self._listener._accept()  # type: ignore[attr-defined]
            except OSError as error:
                # Out of memory or descriptors, or a peer that has left again: none ends the agent, and the
                # pause keeps the first two from taking all of the processor.
                print(f"banger-agent: accept: {error}", file=sys.stderr)
                sleep(0.05)
                continue
            self._admit(_socket.socket(fileno=fd), address)

    def _admit(self, sock: _socket.socket, address: object) -> None:
        if self._options.unix is None and not is_host(address):
            sock.close()  # a process of this guest, or another guest
            return
        with self._lock:
            full = self._open >= MAX_CONNECTIONS
            self._open += not full
        if full:
            _refuse_busy(sock)
            return
        try:
            start_new_thread(self._serve, (sock,))
        except RuntimeError:  # no more threads
            self._leave()
            _refuse_busy(sock)

    def _leave(self) -> None:
        with self._lock:
            self._open -= 1

    def _serve(self, sock: _socket.socket) -> None:
        try:
            self._answer(sock)
            http1.finish(sock)
        except OSError:
            pass  # the host has left
        finally:
            sock.close()
            self._leave()

    def _answer(self, sock: _socket.socket) -> None:
        try:
            request = http1.read_request(sock)
            self._route(sock, request)
        except http1.Refused as refusal:
            http1.respond(sock, refusal.status, {"error": refusal.text}, refusal.headers)

    def _route(self, sock: _socket.socket, request: http1.Request) -> None:
        if request.method == "CONNECT":
            _connect(sock, request)
            return
        routes = {
            "/healthz": ("GET", _health),
            "/info": ("GET", self._info),
            "/services": ("GET", self._services),
            "/ports": ("GET", _ports),
            "/exec": ("POST", _exec),
            "/identity": ("GET, POST", self._identity),
            "/opencode": ("POST", self._opencode),
            "/files": ("POST", _files),
            "/grow": ("POST", _grow),
            "/shutdown": ("POST", self._shutdown),
        }
        if request.path not in routes:
            raise http1.Refused(404, f"there is no {request.path[:200]}")
        methods, handler = routes[request.path]
        if request.method not in methods.split(", "):
            raise http1.Refused(405, f"{request.path} takes {methods}", {"Allow": methods})
        handler(sock, request)

    def _info(self, sock: _socket.socket, request: http1.Request) -> None:
        from banger.guest.agent.info import report as info

        http1.respond(sock, 200, info(self._options.root))

    def _services(self, sock: _socket.socket, request: http1.Request) -> None:
        from banger.guest.agent.services import report as services

        http1.respond(sock, 200, services(self._options.root))

    def _identity(self, sock: _socket.socket, request: http1.Request) -> None:
        from banger.guest.agent.identity import change
        from banger.guest.agent.identity import report as identity

        if request.method == "POST":
            change(request, self._options.root)
        http1.respond(sock, 200, identity(self._options.root))

    def _opencode(self, sock: _socket.socket, request: http1.Request) -> None:
        from banger.guest.agent.credentials import give

        give(request, self._options.root)
        http1.respond(sock, 202, {"service": "opencode"})

    def _shutdown(self, sock: _socket.socket, request: http1.Request) -> None:
        from banger.guest.agent.power import ask_init, parse_mode

        mode = parse_mode(request.body)
        program = self._options.shutdown_program
        if self._options.unix is not None and program is None:
            raise http1.Refused(403, "an agent that does not listen on vsock shuts nothing down")
        http1.respond(sock, 202, {"mode": mode})
        ask_init(mode, program)


def is_host(address: object) -> bool:
    """Whether a connection's peer, (cid, port), is the host: not a process of this guest, nor another guest."""
    return isinstance(address, tuple) and len(address) == 2 and address[0] == HOST_CID


def _refuse_busy(sock: _socket.socket) -> None:
    try:
        http1.respond(sock, 503, {"error": f"there are {MAX_CONNECTIONS} connections already"})
    except OSError:
        pass  # it has left, or would make us wait
    finally:
        sock.close()


def _health(sock: _socket.socket, request: http1.Request) -> None:
    http1.respond(sock, 200, report())


def _ports(sock: _socket.socket, request: http1.Request) -> None:
    from banger.guest.agent.ports import report as ports

    http1.respond(sock, 200, ports())


def _connect(sock: _socket.socket, request: http1.Request) -> None:
    from banger.guest.agent.tunnel import tunnel

    tunnel(sock, request)


def _exec(sock: _socket.socket, request: http1.Request) -> None:
    if request.headers.get("upgrade", "").lower() != EXEC_UPGRADE:
        raise http1.Refused(426, "exec needs Upgrade: " + EXEC_UPGRADE, {"Upgrade": EXEC_UPGRADE})
    from banger.guest.agent.execution import execute

    execute(sock, request)


def _files(sock: _socket.socket, request: http1.Request) -> None:
    if request.headers.get("upgrade", "").lower() != FILES_UPGRADE:
        raise http1.Refused(426, "files needs Upgrade: " + FILES_UPGRADE, {"Upgrade": FILES_UPGRADE})
    from banger.guest.agent.files import copy

    copy(sock, request)


def _grow(sock: _socket.socket, request: http1.Request) -> None:
    from banger.guest.agent.grow import grow

    http1.respond(sock, 200, grow(request))


def _listen(unix: "str | None") -> _socket.socket:
    if unix is not None:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        listener.bind(unix)
        os.chmod(unix, 0o600)
    else:
        listener = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
        listener.bind((_ANY_CID, AGENT_PORT))
    listener.listen(MAX_CONNECTIONS)
    return listener


def _announce() -> None:
    """Wake the host, which may be listening; then load what exec needs while the host gets going."""
    sock = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
    try:
        sock.settimeout(READY_SECONDS)
        sock.connect((HOST_CID, READY_PORT))
        sock.sendall(READY_WORD + b" " + boot_id().encode() + b"\n")
    except OSError:
        pass  # nobody listens: the host has its own way to find out
    finally:
        sock.close()
    import banger.guest.agent.execution  # noqa: F401


def main(arguments: "list[str]") -> int:
    """Run the agent; ends only by a signal, or at once when it cannot listen."""
    options = Options(arguments)
    try:
        server = Server(options)
    except OSError as error:
        print(f"banger-agent: cannot listen: {error}", file=sys.stderr)
        return 1
    server.run()
    return 0

"""An engine without a machine: a process that serves Firecracker's API, with the real agent where its guest would be.

Started as `crash_engine.py DIRECTORY WORDS...`, the words being those of banger-vmm. It looks at every disk before it
"boots" and writes to DIRECTORY/faults when it was given one that is not whole, or that another engine has. It ends by
SIGKILL at the request whose number is in DIRECTORY/engine. Few imports: fifty tests start it a hundred times.
"""

import fcntl
import os
import signal
import sys
from _socket import AF_UNIX, SOCK_STREAM, socket
from _thread import allocate_lock, start_new_thread

if __name__ == "__main__":
    sys.path.insert(0, os.path.realpath(__file__).rsplit("/", 3)[0] + "/src")

from banger.guest.agent import http1
from banger.guest.agent.health import boot_id
from banger.guest.agent.jsonlite import decode
from banger.guest.agent.server import Options, Server
from banger.guest.protocol import AGENT_PORT, READY_PORT, READY_WORD

VERDICT = '{"accelerator": "kvm", "reason": "pretended by a test", "qemu_version": "0"}'
_INCOMPAT, _NEEDS_RECOVERY = 1024 + 0x60, 0x4


def needs_replay(disk: str) -> bool:
    """Whether an ext4 has transactions in its journal that are to be replayed."""
    with open(disk, "rb") as file:  # noqa: PTH123 (no pathlib: see above)
        file.seek(_INCOMPAT)
        return bool(file.read(1)[0] & _NEEDS_RECOVERY)


class Notes:
    """What this process tells the test, and the test this process: small files in one directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._lock = allocate_lock()

    def fault(self, text: str) -> None:
        with open(f"{self.directory}/faults", "a") as file:  # noqa: PTH123
            file.write(f"{text}\n")

    def count(self, what: str) -> None:
        """One more request; the one that was chosen is never answered."""
        with self._lock, open(f"{self.directory}/requests", "a+") as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = len(file.readlines()) + 1
            file.write(f"{what}\n")
        try:
            with open(f"{self.directory}/engine") as file:  # noqa: PTH123
                chosen, victims = file.read().split()
        except FileNotFoundError:
            return
        if number == int(chosen):
            os.unlink(f"{self.directory}/engine")  # noqa: PTH108
            with open(f"{self.directory}/fired", "a") as file:  # noqa: PTH123
                file.write(f"{victims} at request {number}, {what}\n")
            if victims == "both":
                with open(f"{self.directory}/daemon") as file:  # noqa: PTH123
                    os.kill(int(file.read()), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class Disk:
    """A disk that is held: nobody else may have the file, nor another file of its name."""

    def __init__(self, notes: Notes, path: str) -> None:
        self._notes, self._path = notes, path
        name = path.replace("/", "%")
        self._held = [
            os.open(path, os.O_RDWR | os.O_CLOEXEC),
            os.open(f"{notes.directory}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600),
        ]
        try:
            for descriptor in self._held:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse("another engine has it")

    def check(self) -> None:
        """Whole? Raises `Refused`, and tells the test, unless it is."""
        if self._path.endswith(".qcow2"):
            self._must("qemu-img", "check", "-q", self._path)
            return
        disk = self._path
        if needs_replay(disk):
            disk = f"{self._notes.directory}/replayed-{os.getpid()}"
            self._must("cp", "--sparse=always", self._path, disk)
            self._must("e2fsck", "-y", "-E", "journal_only", disk)
        self._must("e2fsck", "-fn", disk)

    def _must(self, *argv: str) -> None:
        status = os.spawnvp(os.P_WAIT, argv[0], argv)  # subprocess takes long to import
        if status != 0:
            self._refuse(f"{argv[0]} says {status}")

    def _refuse(self, why: str) -> None:
        self._notes.fault(f"an engine was given {self._path}: {why}")
        raise http1.Refused(400, why)


class Guest(Server):
    """The agent, reached over hybrid vsock. It must not be let at this host's power or filesystems."""

    def __init__(self, notes: Notes, vsock: str) -> None:
        super().__init__(Options(["--unix", vsock]))
        self._notes = notes

    def _answer(self, sock: socket) -> None:
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := sock.recv(1)):
                return
            line += byte
        assert line == b"CONNECT %d\n" % AGENT_PORT, line
        sock.sendall(b"OK 1073741824\n")
        super()._answer(sock)

    def _route(self, sock: socket, request: http1.Request) -> None:
        self._notes.count(f"guest {request.path}")
        if request.path == "/shutdown":
            http1.respond(sock, 202, {"mode": "poweroff"})
            http1.finish(sock)
            os._exit(0)
        elif request.path == "/grow":
            http1.respond(sock, 200, {"bytes": 1 << 30, "grown": True})
        else:
            super()._route(sock, request)


class Engine:
    """The API of one machine."""

    def __init__(self, notes: Notes, vm_id: str) -> None:
        self._notes, self._vm_id = notes, vm_id
        self._state = "Not started"
        self._disks: list[Disk] = []
        self._vsock = ""

    def serve(self, path: str) -> None:
        listener = socket(AF_UNIX, SOCK_STREAM)
        listener.bind(path)
        listener.listen(16)
        while True:
            descriptor, _ = listener._accept()  # type: ignore[attr-defined]
            start_new_thread(self._connection, (socket(fileno=descriptor),))

    def _connection(self, sock: socket) -> None:
        try:
            try:
                request = http1.read_request(sock)
                self._notes.count(f"{request.method} {request.path}")
                http1.respond(sock, 200, self._answer(request))
            except http1.Refused as refusal:
                http1.respond(sock, refusal.status, {"fault_message": refusal.text})
            http1.finish(sock)
        except OSError:
            pass  # it has left
        finally:
            sock.close()

    def _answer(self, request: http1.Request) -> "dict[str, object]":
        body = decode(request.body) if request.body else {}
        assert isinstance(body, dict)
        if request.path == "/version":
            return {"firecracker_version": "1.15.1"}
        if request.path == "/":
            return {"id": self._vm_id, "state": self._state, "vmm_version": "1", "app_name": "pretended"}
        if request.path.startswith("/drives/") and request.method == "PUT":
            self._disks.append(Disk(self._notes, str(body["path_on_host"])))
        elif request.path == "/vsock":
            self._vsock = str(body["uds_path"])
        elif request.path == "/actions":
            self._start()
        return {}

    def _start(self) -> None:
        for disk in self._disks:
            disk.check()
        self._notes.count("disks are whole")
        guest = Guest(self._notes, self._vsock)
        start_new_thread(guest.run, ())
        self._state = "Running"
        dial = socket(AF_UNIX, SOCK_STREAM)
        dial.connect(f"{self._vsock}_{READY_PORT}")
        dial.sendall(READY_WORD + b" " + boot_id().encode() + b"\n")
        dial.close()


def main(directory: str, words: "list[str]") -> None:
    if "--probe-accelerator" in words:
        print(VERDICT)
        return
    given = dict(zip(words[::2], words[1::2], strict=True))
    Engine(Notes(directory), given["--id"]).serve(given["--api-sock"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

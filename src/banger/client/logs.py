"""A VM's log as it grows, through the daemon; a daemon that is killed does not end it."""

from banger.client.api import Client
from banger.client.transport import DaemonLost
from banger.client.wait import wait_for_end
from banger.model.errors import Conflict, NotFound
from banger.paths import Paths

SEEN = 256  # bytes by which the daemon finds a place in a log


class LogStream:
    """What comes behind what was `seen`, until the VM is deleted; restarts of the VM do not end it.

    `fileno` is for poll(2); `waiting` tells of a piece that the descriptor does not tell of.
    """

    def __init__(self, paths: Paths, vm_id: str, source: str, seen: bytes) -> None:
        self._paths = paths
        self._vm_id = vm_id
        self._source = source
        self._seen = seen[-SEEN:]
        self._fruitless = False
        self.ended = False
        self._connect(Client(paths))

    def _connect(self, client: Client) -> None:
        self._reply = client.follow_logs(self._vm_id, self._source, self._seen)
        self._daemon = self._reply.server_pid()

    def fileno(self) -> int:
        return self._reply.fileno()

    @property
    def waiting(self) -> bool:
        return self._reply.waiting

    def read(self) -> bytes:
        """Wait for the next piece; empty when the stream began anew, or has `ended` with the VM.

        Raises `DaemonLost` when the daemon was stopped.
        """
        if data := self._reply.receive():
            self._seen = (self._seen + data)[-SEEN:]
            self._fruitless = False
        else:
            self._reply.close()
            self.ended = not self._again()
        return data

    def _again(self) -> bool:
        """After the stream's end: begin another. False when the VM is gone."""
        if self._fruitless:
            raise DaemonLost("the log's stream ended too early", hint="banger daemon status")
        self._fruitless = True
        try:
            return self._resume(Client(self._paths, start=False))
        except (Conflict, DaemonLost):
            # nobody answers, or only to say that it stops; a daemon that stops removes its socket last of all
            wait_for_end(self._daemon)
        if not self._paths.daemon_socket.exists():
            raise DaemonLost("the daemon was stopped; VMs go on running", hint="run the command again")
        return self._resume(Client(self._paths))

    def _resume(self, client: Client) -> bool:
        try:
            if client.show_vm(self._vm_id)["state"] == "deleting":
                return False
            self._connect(client)
        except NotFound:
            return False
        return True

    def close(self) -> None:
        self._reply.close()

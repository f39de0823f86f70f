"""`vm console`: our terminal as the screen and keyboard of a VM's serial line.

Output comes through the daemon as for `vm logs --follow`; keys go straight to the pipe that the engine reads.
"""

import argparse
import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

from banger.cli.connect import client, required_name
from banger.cli.escapes import Escape, Escapes, parse_escape
from banger.cli.plain import Plain
from banger.cli.terminal import raw, signals
from banger.client.console import Keyboard, open_keyboard
from banger.client.logs import LogStream
from banger.model.documents import VmDocument
from banger.model.errors import Conflict, Invalid, Unsupported
from banger.paths import default_paths

SCREEN_BYTES = 16384
LAST_WORDS_S = 2.0
QUIET_MS = 300
TAKES_NOTHING_MS = 5000
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_HELP = "{0} . detaches, {0} ? shows this, {0} {0} types one {0}; at the beginning of a line only"


def run_console(arguments: argparse.Namespace) -> int:
    """0 after a detach or the VM's end, 128 + n after signal n. Raises `Conflict` when the VM does not run."""
    if arguments.json:
        raise Invalid("console passes the guest's own output through, so --json means nothing", hint="leave it out")
    try:
        escape = parse_escape(arguments.escape)
    except ValueError as error:
        raise Invalid(f"--escape {arguments.escape!r} is no escape character", hint="like ~ or ^], or none") from error
    vm = client().show_vm(required_name(arguments))
    with contextlib.ExitStack() as stack:
        keyboard, reason = None, ""
        try:
            keyboard = stack.enter_context(contextlib.closing(open_keyboard(default_paths(), vm)))
        except Unsupported as error:
            if not sys.stdin.isatty():
                raise Unsupported(f"{vm['name']}'s console is read-only: {error.message}", hint=error.hint) from error
            reason = error.message
        engine = stack.enter_context(_engine(vm))
        data = client().vm_logs(vm["id"], "console", SCREEN_BYTES)
        stream = stack.enter_context(contextlib.closing(LogStream(default_paths(), vm["id"], "console", data)))
        session = _Session(vm, stream, keyboard, engine, Escapes(escape if sys.stdin.isatty() else None))
        session.greet(data, arguments.escape, reason)
        with signals(_ENDING) as wake, raw(session.typing and sys.stdin.isatty()):
            return session.run(wake)


@contextlib.contextmanager
def _engine(vm: VmDocument) -> Iterator[int]:
    """A descriptor that tells of the engine's end."""
    gone = Conflict(f"{vm['name']} has just ended", hint=f"banger vm show {vm['name']}")
    try:
        descriptor = os.pidfd_open(vm["engine_pid"] or 0)
    except OSError as error:
        raise gone from error
    try:
        # had the engine ended before, and its pid been used again, the daemon would know
        if client().show_vm(vm["id"])["engine_pid"] != vm["engine_pid"]:
            raise gone
        yield descriptor
    finally:
        os.close(descriptor)


class _Session:
    """From attach to detach. Without a keyboard it only shows, and leaves our input alone."""

    def __init__(
        self, vm: VmDocument, stream: LogStream, keyboard: Keyboard | None, engine: int, escapes: Escapes
    ) -> None:
        self._name = vm["name"]
        self._stream = stream
        self._keyboard = keyboard
        self._engine = engine
        self._escapes = escapes
        self._terminal = sys.stdin.isatty()
        self._input = keyboard is not None
        self._at_line_start = True
        self._complained = False
        self._help = ""
        self._status: int | None = None

    @property
    def typing(self) -> bool:
        return self._keyboard is not None

    def greet(self, data: bytes, escape: str, reason: str) -> None:
        """The last screen, without what could make the terminal answer, and a line that says how to leave."""
        self._help = _HELP.format(escape) if escape != "none" else "there is no escape character"
        if not self._terminal:
            return
        height = os.get_terminal_size(0).lines or 24
        plain = Plain(terminal=True)
        text = "".join((plain.feed(data) + plain.end()).splitlines(keepends=True)[-(height - 2) :])
        if reason:
            how = f"read-only: {reason}; Ctrl-C ends"
        else:
            how = "Enter for a prompt" + (f"; Enter {escape} . detaches" if escape != "none" else "")
        self._show(text.replace("\n", "\r\n").encode())
        self._say(f"attached to {self._name}; {how}")

    def run(self, wake: int) -> int:
        try:
            while self._status is None:
                self._turn(wake)
        finally:
            self._end_line()
        return self._status

    def _turn(self, wake: int) -> None:
        poller = select.poll()
        for descriptor in (wake, self._engine, self._stream.fileno()):
            poller.register(descriptor, select.POLLIN)
        blocked = self._keyboard is not None and self._keyboard.unsent > 0
        if self._keyboard is not None and blocked:
            poller.register(self._keyboard, select.POLLOUT)
        # a terminal is always read, for the escapes' sake; a pipe waits with us
        if self._input and (self._terminal or not blocked):
            poller.register(0, select.POLLIN)
        patience = TAKES_NOTHING_MS if blocked and not self._complained else None
        ready = {descriptor for descriptor, _ in poller.poll(0 if self._stream.waiting else patience)}
        if wake in ready:
            self._leave(128 + os.read(wake, 1)[0])
        elif self._keyboard is not None and blocked:
            self._keyboard.flush()
            if not ready and patience is not None and not self._stream.waiting:
                self._complain()
        if 0 in ready and self._status is None:
            self._typed(os.read(0, 4096))
        if (self._stream.fileno() in ready or self._stream.waiting) and self._status is None:
            self._arrived()
        elif self._engine in ready and self._status is None:
            self._ended()

    def _typed(self, data: bytes) -> None:
        if not data:
            self._input = False
            if self._terminal:
                self._leave(128 + signal.SIGHUP)
        for part in self._escapes.feed(data):
            if part is Escape.DETACH:
                self._leave(0, f"detached from {self._name}")
                return
            if part is Escape.HELP:
                self._say(self._help)
            elif isinstance(part, bytes) and self._keyboard is not None and not self._keyboard.type(part):
                self._complain()

    def _complain(self) -> None:
        """Once: more would be in the way of what the guest says."""
        if not self._complained:
            self._complained = True
            self._say("the guest takes no input")

    def _arrived(self) -> None:
        self._show(self._stream.read())
        if self._stream.ended:
            self._leave(0, f"{self._name} was deleted")

    def _ended(self) -> None:
        """The engine has ended: show what it still said."""
        deadline = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < deadline and select.select([self._stream], [], [], QUIET_MS / 1000)[0]:
            self._show(self._stream.read())
            if self._stream.ended:
                break
        self._leave(0, f"{self._name} has stopped")

    def _show(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
        if data:
            self._at_line_start = data.endswith(b"\n")

    def _say(self, text: str) -> None:
        """On a line of its own, whatever the terminal's mode."""
        self._end_line()
        os.write(2, f"[banger: {text}]\r\n".encode())

    def _end_line(self) -> None:
        if not self._at_line_start and self._terminal:
            os.write(2, b"\r\n")
        self._at_line_start = True

    def _leave(self, status: int, why: str = "") -> None:
        self._status = status
        if why:
            self._say(why)

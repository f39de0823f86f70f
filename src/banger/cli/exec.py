"""The terminal's side of `vm exec`."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from banger.cli.connect import client, name_and_words
from banger.cli.terminal import raw, signals
from banger.client.exec import ExecSession
from banger.model.errors import Invalid
from banger.model.guest import ExecRequest

_USUAL = os.terminal_size((80, 24))
_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run_exec(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as a shell would give it."""
    name, words = name_and_words(arguments, arguments.words)
    command = [*words, *arguments.tail]
    if not command:
        raise Invalid("no command was given", hint="banger vm exec NAME -- COMMAND [ARGUMENT...]")
    if arguments.json:
        raise Invalid("exec passes the command's own output through, so --json means nothing here", hint="leave it out")
    if arguments.tty and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Invalid("--tty needs a terminal on standard input and output", hint="leave -t out")
    size = _size() if arguments.tty else _USUAL
    request = ExecRequest(
        argv=tuple(command),
        env=dict(_variable(text) for text in arguments.env) | _terminal(arguments.tty),
        cwd=arguments.cwd,
        user=arguments.user,
        tty=arguments.tty,
        rows=size.lines,
        cols=size.columns,
        timeout_s=arguments.timeout,
    )
    session = ExecSession(client().dial(), name, request)
    stdin = 0 if arguments.stdin or arguments.tty else None
    with _signals(session, tty=arguments.tty) as (wake, woken), raw(arguments.tty):
        ended = session.run(stdin=stdin, wake=wake, woken=woken)
    if ended.error:
        print(f"error: {ended.error}", file=sys.stderr)
    if ended.timeout:
        print(f"error: the command was ended after {arguments.timeout:g} s", file=sys.stderr)
    return ended.exit_code()


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Invalid(f"--env {text!r} is not NAME=VALUE", hint="write --env NAME=VALUE")
    return name, value


def _size() -> os.terminal_size:
    """The terminal's; one that does not know its size, such as a serial line, says 0."""
    size = os.get_terminal_size()
    return size if size.columns and size.lines else _USUAL


def _terminal(tty_wanted: bool) -> dict[str, str]:
    return {"TERM": os.environ.get("TERM", "xterm-256color")} if tty_wanted else {}


@contextlib.contextmanager
def _signals(session: ExecSession, *, tty: bool) -> Iterator[tuple[int, Callable[[], None]]]:
    """Signals wake the session and are passed to the command; a second Ctrl-C ends us."""
    interrupts = 0

    def woken() -> None:
        nonlocal interrupts
        for number in os.read(wake, 64):
            if number == signal.SIGWINCH:
                size = _size()
                session.resize(size.lines, size.columns)
                continue
            session.signal(number)
            interrupts += number == signal.SIGINT
            if interrupts > 1:
                raise KeyboardInterrupt

    with signals((*_PASSED, signal.SIGWINCH) if tty else _PASSED) as wake:
        yield wake, woken

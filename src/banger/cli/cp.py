"""banger vm cp: files between this host and a VM."""

import argparse
import contextlib
import os
import re
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from banger.cli.connect import client
from banger.cli.render import duration, print_json
from banger.client.files import Copied, Place, download, download_archive, upload, upload_archive
from banger.model.errors import Invalid, NotFound
from banger.model.sizes import show_size

_REMOTE = re.compile(r"([a-z0-9-]+):(.*)", re.DOTALL)
_STREAM = "-"
_SHOWN_EVERY_S = 0.2


def run_cp(arguments: argparse.Namespace) -> int:
    """Copy, tell what was left out, and return 1 when something was."""
    source, target = _REMOTE.fullmatch(arguments.source), _REMOTE.fullmatch(arguments.target)
    if source and target:
        raise Invalid("both SOURCE and TARGET are in a VM", hint="copy to this host, then to the other VM")
    if arguments.user and (arguments.archive or source):
        raise Invalid("--user is for what is copied into a VM, without --archive", hint="leave it out")
    began = time.monotonic()
    progress = Progress(arguments.quiet)
    with _signals(), progress:
        if target:
            done = _into(arguments, target, progress)
        elif source:
            done = _out_of(arguments, source, progress)
        else:
            raise Invalid("neither SOURCE nor TARGET is in a VM", hint="NAME:PATH is a place in a VM")
    _tell(arguments, done, time.monotonic() - began)
    return 1 if done.skipped else 0


def _into(arguments: argparse.Namespace, target: re.Match[str], progress: "Progress") -> Copied:
    source = arguments.source
    archived = source == _STREAM
    if not archived:
        progress.total = _size(source)
    elif sys.stdin.isatty():
        raise Invalid("standard input is a terminal, not a tar archive", hint="tar c . | banger vm cp - NAME:PATH")
    place = _place(target, archived or _means_contents(source), arguments.archive, arguments.user)
    return upload_archive(0, place, progress.show) if archived else upload(source, place, progress.show)


def _size(source: str) -> int:
    """Bytes of a file; 0 for a directory, whose size only the copy tells."""
    try:
        status = Path(source).stat()
    except FileNotFoundError:
        raise NotFound(f"there is no {source}", hint="check the path") from None
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _out_of(arguments: argparse.Namespace, source: re.Match[str], progress: "Progress") -> Copied:
    archived = arguments.target == _STREAM
    if archived and arguments.json:
        raise Invalid("the archive goes to standard output, so --json means nothing here", hint="leave it out")
    if archived and sys.stdout.isatty():
        raise Invalid("standard output is a terminal", hint="banger vm cp NAME:PATH - | tar t")
    path = source[2] or "."
    # only root can give files away
    place = _place(source, _means_contents(path), arguments.archive and os.geteuid() == 0, None)
    if archived:
        return download_archive(place, 1, progress.show)
    return download(place, arguments.target, Path(path).name, progress.show)


def _place(remote: re.Match[str], contents: bool, keep_owners: bool, user: str | None) -> Place:
    return Place(client().show_vm(remote[1]), remote[2] or ".", contents, keep_owners, user)


def _means_contents(path: str) -> bool:
    """Whether a source stands for what is in it: `DIR/.`, and those that have no name of their own."""
    return path.rstrip("/").rpartition("/")[2] in ("", ".", "..")


def _tell(arguments: argparse.Namespace, done: Copied, seconds: float) -> None:
    for line in done.skipped:
        print(f"warning: {line}", file=sys.stderr)
    if arguments.json:
        print_json({**done._asdict(), "seconds": round(seconds, 3)})
    elif sys.stderr.isatty() and not arguments.quiet:
        print(f"{done.entries} entries, {show_size(done.bytes)} in {duration(seconds)}", file=sys.stderr)


class Progress:
    """One line on a terminal: bytes, the share of the total where it is known, rate, entries."""

    def __init__(self, quiet: bool) -> None:
        self._on = sys.stderr.isatty() and not quiet
        self._began = time.monotonic()
        self._next = self._began + _SHOWN_EVERY_S
        self.total = 0

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        if self._on:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, entries: int, size: int) -> None:
        """Take a count and show it, a few times a second."""
        if not self._on or (now := time.monotonic()) < self._next:
            return
        self._next = now + _SHOWN_EVERY_S
        words = [f"{show_size(size)} of {show_size(self.total)}" if self.total else show_size(size)]
        words.append(f"{show_size(int(size / (now - self._began)))}/s")
        if entries:
            words.append(f"{entries} entries")
        line = "  ".join(words)[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a copy as Ctrl-C does: with nothing half-made left behind."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

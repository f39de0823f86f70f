"""Room that the database keeps for itself, so that it can be written when nothing else on its filesystem can.

A machine that is paused because the disk is full must be recorded as paused, its resuming is an operation, and a
daemon must be able to start. The room is free pages in the database's file, and the blocks of its write-ahead log.
SQLite removes the log when it closes the database: a second name keeps its blocks for the next start.
"""

import contextlib
import os
import sqlite3
from pathlib import Path

PAGES = 512  # of 4 KiB, in the database itself
LOG_BYTES = 8 << 20  # SQLite begins the log anew after 1000 pages
_HEADER = 32  # of the log; zeros mean that there is nothing in it (SQLite, walformat.html)


def _log(path: Path) -> Path:
    return Path(f"{path}-wal")


def _spare(path: Path) -> Path:
    return path.with_name(f".{path.name}-spare")


def take_spare(path: Path) -> None:
    """Before the database is opened: what was left of the log that was, with nothing in it, is the log again."""
    log, spare = _log(path), _spare(path)
    with contextlib.suppress(OSError):
        if log.exists():
            spare.unlink()  # the last daemon was killed: its log counts
            return
        with spare.open("r+b") as file:
            file.write(bytes(_HEADER))
            file.flush()
            os.fsync(file.fileno())
        spare.rename(log)


def keep_spare(connection: sqlite3.Connection, path: Path) -> None:
    """Have free pages and blocks for the log. A disk that is full already is no error."""
    with contextlib.suppress(sqlite3.OperationalError, OSError):
        if connection.execute("PRAGMA freelist_count").fetchone()[0] < PAGES // 2:
            _make_pages(connection)
        # SQLite takes trailing zeros for no frames, and never makes the log of an open database shorter
        with _log(path).open("r+b") as log:
            os.posix_fallocate(log.fileno(), 0, LOG_BYTES)


def leave_spare(path: Path) -> None:
    """Before the database is closed: give the log another name, as it loses its own."""
    with contextlib.suppress(OSError):
        _spare(path).unlink(missing_ok=True)
        _spare(path).hardlink_to(_log(path))


def _make_pages(connection: sqlite3.Connection) -> None:
    """Pages of a table that is dropped are free, and the file keeps them."""
    connection.execute("CREATE TABLE IF NOT EXISTS spare (pages BLOB)")
    try:
        connection.execute("INSERT INTO spare VALUES (zeroblob(?))", (PAGES * 4096,))
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    finally:
        connection.execute("DROP TABLE spare")

"""Room that the database keeps for itself, so that it can be written when nothing else on its filesystem can.

A machine that is paused because the disk is full must be recorded as paused, and its resuming be an operation.
"""

import contextlib
import os
import sqlite3
from pathlib import Path

PAGES = 512  # of 4 KiB, in the database itself
LOG_BYTES = 8 << 20  # the write-ahead log begins anew after 1000 pages


def keep_spare(connection: sqlite3.Connection, path: Path) -> None:
    """Have free pages in the database's file, and blocks for its log. A disk that is full already is no error."""
    with contextlib.suppress(sqlite3.OperationalError, OSError):
        if connection.execute("PRAGMA freelist_count").fetchone()[0] < PAGES // 2:
            _make_pages(connection)
        # trailing zeros are no frames to SQLite, which never makes the log shorter while the database is open
        with Path(f"{path}-wal").open("r+b") as log:
            os.posix_fallocate(log.fileno(), 0, LOG_BYTES)


def _make_pages(connection: sqlite3.Connection) -> None:
    """Pages of a table that is dropped are free, and the file keeps them."""
    connection.execute("CREATE TABLE IF NOT EXISTS spare (pages BLOB)")
    try:
        connection.execute("INSERT INTO spare VALUES (zeroblob(?))", (PAGES * 4096,))
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    finally:
        connection.execute("DROP TABLE spare")

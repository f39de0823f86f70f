"""The database: SQLite in WAL mode, one connection, one writer, numbered migrations."""

import re
import sqlite3
from contextlib import ExitStack
from importlib import resources
from pathlib import Path

from banger.model.errors import HostRequirement
from banger.store.spare import keep_spare, leave_spare, take_spare

_MIGRATION = re.compile(r"(\d{4})_\w+\.sql")


class Database(sqlite3.Connection):
    """A connection that leaves the room of its log to the next one, where it was told to keep some."""

    spare_of: Path | None = None

    def close(self) -> None:
        if self.spare_of is not None:
            leave_spare(self.spare_of)
        super().close()


def open_database(path: Path, *, spare: bool = False) -> Database:
    """Open or create the database and bring it to the newest schema.

    `spare`: nobody else opens it meanwhile, and it keeps room of its own for a full disk (`banger.store.spare`).
    Raises `HostRequirement` for a file that is not ours, is newer than this program, or cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with ExitStack() as on_failure:
            if spare:
                take_spare(path)
            # autocommit: each statement is a transaction of its own, migrations open theirs
            connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, factory=Database)
            on_failure.callback(connection.close)
            if spare:
                # alone, it needs no file of shared memory, for which a full disk has no room
                connection.spare_of = path
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection)
            if spare:
                keep_spare(connection, path)
            on_failure.pop_all()
    except sqlite3.Error as error:
        raise HostRequirement(
            f"cannot use the database {path}: {error}",
            hint="check the disk and the file's owner; move the file away to begin afresh",
        ) from error
    path.chmod(0o600)
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    current = connection.execute("PRAGMA user_version").fetchone()[0]
    steps = sorted(
        (int(found[1]), entry)
        for entry in resources.files("banger.store").joinpath("migrations").iterdir()
        if (found := _MIGRATION.fullmatch(entry.name))
    )
    if current > steps[-1][0]:
        raise HostRequirement(
            f"the database has schema {current}, this banger knows up to {steps[-1][0]}",
            hint="use the newer banger that wrote it",
        )
    for number, entry in steps:
        if number > current:
            script = entry.read_text(encoding="utf-8")
            # one transaction: a crash leaves the old schema or the new one
            connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")

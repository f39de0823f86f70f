"""VM records."""

import sqlite3

import msgspec

from banger.model.errors import Conflict, HostRequirement, Invalid, NotFound
from banger.model.vm import Vm

PREFIX_MIN = 4
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Vm).decode


class VmStore:
    """Rows of `vms`. Every method is one statement, so a crash leaves all of it or nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, vm: Vm) -> None:
        """Insert a new VM. Raises `Conflict` when its name is taken."""
        try:
            self._connection.execute(
                "INSERT INTO vms (id, name, state, document) VALUES (?, ?, ?, ?)",
                (vm.id, vm.name, vm.state, _encode(vm)),
            )
        except sqlite3.IntegrityError as error:
            raise Conflict(
                f"a VM named {vm.name} exists already",
                hint=f"choose another name, or `banger vm delete {vm.name}`",
            ) from error

    def update(self, vm: Vm) -> None:
        """Raises `HostRequirement` when it cannot be written, as on a disk on which even the spare room is gone."""
        try:
            self._connection.execute(
                "UPDATE vms SET name = ?, state = ?, document = ? WHERE id = ?",
                (vm.name, vm.state, _encode(vm), vm.id),
            )
        except sqlite3.OperationalError as error:
            raise HostRequirement(
                f"the record of {vm.name} cannot be written: {error}", hint="make room on the disk, and try again"
            ) from error

    def remove(self, vm_id: str) -> None:
        self._connection.execute("DELETE FROM vms WHERE id = ?", (vm_id,))

    def all(self) -> list[Vm]:
        """Every VM, by name."""
        return [_decode(row[0]) for row in self._connection.execute("SELECT document FROM vms ORDER BY name")]

    def get(self, vm_id: str) -> Vm | None:
        row = self._connection.execute("SELECT document FROM vms WHERE id = ?", (vm_id,)).fetchone()
        return _decode(row[0]) if row else None

    def find(self, reference: str) -> Vm:
        """The VM with this name, id, or unambiguous beginning of an id, at least 4 digits of it.

        A name that is gone must not be taken for another VM's id: what is deleted next would be the wrong one.
        Raises `NotFound` or `Invalid`.
        """
        exact = self._connection.execute(
            "SELECT document FROM vms WHERE name = ? OR id = ? ORDER BY name = ? DESC",
            (reference, reference, reference),
        ).fetchone()
        if exact:
            return _decode(exact[0])
        rows = self._connection.execute(
            "SELECT document FROM vms WHERE length(?) >= ? AND substr(id, 1, length(?)) = ? ORDER BY name LIMIT 5",
            (reference, PREFIX_MIN, reference, reference),
        ).fetchall()
        found = [_decode(row[0]) for row in rows]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{vm.name} ({vm.id})" for vm in found)
            raise Invalid(
                f"{reference!r} is the beginning of several ids: {names}",
                hint="use the name or more of the id",
            )
        raise NotFound(f"there is no VM {reference!r}", hint="`banger vm list` shows what there is")

"""The one tree of errors.

    BangerError
    ├── Invalid            the request is malformed or asks for the impossible
    ├── NotFound           the named thing does not exist
    ├── Conflict           the thing exists but its state forbids the request
    │   └── Busy           another operation holds it; details["operation"] names it
    ├── Unsupported        this engine, image or host kind cannot do it
    ├── HostRequirement    the host lacks a program, a permission or a device
    ├── CommandFailed      a program failed: details argv, status, stderr
    ├── Timeout            a deadline passed
    ├── GuestUnreachable   the guest did not answer, or answered nonsense
    ├── Cancelled          the person, or a shutdown, stopped the operation
    └── Internal           a defect of banger's own

Each error has a message (what happened) and a hint (what to do next). The daemon maps
`http_status` once, the client rebuilds the same class from `code`, and the command line
exits with `exit_code`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class BangerError(Exception):
    """Base of every error that a user may see."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = dict(details or {})

    def to_dict(self) -> dict[str, Any]:
        """The wire form: `{"code", "message", "hint", "details"}`."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


class Invalid(BangerError):
    code = "invalid"
    exit_code = 2
    http_status = 400


class NotFound(BangerError):
    code = "not_found"
    exit_code = 3
    http_status = 404


class Conflict(BangerError):
    code = "conflict"
    exit_code = 4
    http_status = 409


class Busy(Conflict):
    code = "busy"


class Unsupported(BangerError):
    code = "unsupported"
    exit_code = 2
    http_status = 501


class HostRequirement(BangerError):
    code = "host_requirement"
    exit_code = 5
    http_status = 503


class CommandFailed(BangerError):
    code = "command_failed"


class Timeout(BangerError):
    code = "timeout"
    exit_code = 6
    http_status = 504


class GuestUnreachable(BangerError):
    code = "guest_unreachable"
    exit_code = 6
    http_status = 502


class Cancelled(BangerError):
    code = "cancelled"


class Internal(BangerError):
    code = "internal"


def _tree(root: type[BangerError]) -> dict[str, type[BangerError]]:
    # a subclass without a code of its own crosses the wire as what it is a kind of
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def from_dict(document: Mapping[str, Any]) -> BangerError:
    """Rebuild an error from its wire form; an unknown code becomes `Internal`."""
    kind = _tree(BangerError).get(str(document.get("code")), Internal)
    details = document.get("details")
    return kind(
        str(document.get("message", "the daemon reported an error without a message")),
        hint=str(document.get("hint", "")),
        details=details if isinstance(details, dict) else None,
    )

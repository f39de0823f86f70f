"""What crosses the host's channel to a guest's agent, as the host sees it. Everything received is bounded."""

from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

TIMED_OUT = 124  # timeout(1)
NOT_EXECUTABLE = 126  # sh(1)
NOT_FOUND = 127
_ENOENT = 2

Text = Annotated[str, Meta(max_length=256)]
Argument = Annotated[str, Meta(max_length=1024 * 1024)]
Cells = Annotated[int, Meta(ge=1, le=65535)]


class Stream(IntEnum):
    """What a frame of an exec stream carries; the numbers are the wire's."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    EXIT = 3
    RESIZE = 4
    SIGNAL = 5


class Health(msgspec.Struct, frozen=True):
    """`GET /healthz`. Fields that a newer agent adds are ignored."""

    status: Text
    boot_id: Annotated[str, Meta(pattern=r"^[0-9a-f-]{36}$")]
    uptime_s: Annotated[float, Meta(ge=0)]
    agent_version: Text
    hostname: Text
    services: Annotated[dict[Text, Text], Meta(max_length=64)]
    agent_uptime_s: Annotated[float, Meta(ge=0)] | None = None


class ExecRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """`POST /exec`. None: the agent's default (its own user, that user's home, no deadline)."""

    argv: Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=65536)]
    env: dict[Argument, Argument] | None = None
    cwd: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    user: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    tty: bool = False
    rows: Cells = 24
    cols: Cells = 80
    timeout_s: Annotated[float, Meta(gt=0, lt=1e9)] | None = None


class ExecExit(msgspec.Struct, frozen=True):
    """How a process ended: exactly one of status, signal, error (it never started) or timeout."""

    status: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    error: Annotated[str, Meta(max_length=8192)] | None = None
    errno: Annotated[int, Meta(ge=0, le=4095)] = 0
    timeout: bool = False

    def __post_init__(self) -> None:
        if [self.status is None, self.signal is None, self.error is None, not self.timeout].count(False) != 1:
            raise ValueError("an exit is exactly one of status, signal, error and timeout")

    def exit_code(self) -> int:
        """The status that a shell would report."""
        if self.timeout:
            return TIMED_OUT
        if self.signal is not None:
            return 128 + self.signal
        if self.status is not None:
            return self.status
        return NOT_FOUND if self.errno == _ENOENT else NOT_EXECUTABLE

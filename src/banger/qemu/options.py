"""banger-vmm's command line: Firecracker's own, where it means something here, and ours."""

import argparse
import re
from pathlib import Path

from banger.model.errors import Invalid

API_VERSION = "1.17.0-dev"  # the release of the API that is honoured
BODY_MAX = 51200
DEFAULT_SOCKET = "/run/firecracker.socket"
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_LEVELS = ("off", "error", "warn", "warning", "info", "debug", "trace")
# What Firecracker also takes, and why it is not done here
_REFUSED = {
    "--seccomp-filter": "QEMU's own sandbox is always on",
    "--metadata": "it has no MMDS",
    "--mmds-size-limit": "it has no MMDS",
    "--snapshot-version": "it cannot save or load snapshots",
    "--describe-snapshot": "it cannot save or load snapshots",
}


def _level(value: str) -> str:
    if value.lower() not in _LEVELS:
        raise argparse.ArgumentTypeError(f"{value!r} is none of {', '.join(_LEVELS)}")
    return value


def _id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise argparse.ArgumentTypeError("letters, digits and '-', at most 64")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="banger-vmm",
        description="The Firecracker API on a Unix socket, QEMU underneath. docs/engine.md says what is supported.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--api-sock", type=Path, default=Path(DEFAULT_SOCKET), metavar="PATH", help="the API's socket (%(default)s)")
    add("--id", type=_id, default="anonymous-instance", metavar="ID", help="the VM's id")
    add("--config-file", type=Path, metavar="FILE", help="a whole VM as JSON, started at once")
    add("--no-api", action="store_true", help="no socket; needs --config-file")
    add("--boot-timer", action="store_true", help="log how long the guest takes until it writes 123 to I/O port 0x3f0")
    add(
        "--http-api-max-payload-size", type=int, default=BODY_MAX, metavar="BYTES", help="longest request (%(default)s)"
    )
    add("--enable-pci", action="store_true", help="taken and without effect: devices are always on PCI")
    # firecracker-go-sdk gives it unless told otherwise
    add("--no-seccomp", action="store_true", help="taken and without effect: QEMU's own sandbox is always on")
    add("--version", action="store_true", help="print the versions of this program and of the API")
    _add_logging(parser.add_argument_group("log and metrics"))
    ours = parser.add_argument_group("extensions").add_argument
    ours("--backing-file", action="append", default=[], metavar="FILE", help="may be behind qcow2 drives; repeatable")
    ours("--probe-accelerator", action="store_true", help="prove which accelerator works, print it as JSON, and exit")
    ours("--accelerator-cache", type=Path, metavar="FILE", help="where the proof's outcome is kept")
    for option in _REFUSED:
        add(option, nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def _add_logging(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--log-path", metavar="FILE", help="file or named pipe for the log, instead of standard error")
    add("--level", type=_level, metavar="LEVEL", help=f"what is logged: {', '.join(_LEVELS)} (info)")
    add("--module", metavar="NAME", help="log only what modules of this name say")
    add("--show-level", action="store_true", default=None, help="put the level into the log's lines")
    add("--show-log-origin", action="store_true", default=None, help="put file and line into the log's lines")
    add("--metrics-path", metavar="FILE", help="file or named pipe for metrics")
    add("--start-time-us", type=int, metavar="US", help="when the process was started, since 1970")
    add("--start-time-cpu-us", type=int, metavar="US", help="the process's CPU time at its start")
    add("--parent-cpu-time-us", type=int, metavar="US", help="CPU time of the process's parent")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The arguments. Ends the process with status 2 for bad usage, as argparse does; raises `Invalid`."""
    parser = _parser()
    arguments = parser.parse_args(words)
    for option, reason in _REFUSED.items():
        if getattr(arguments, option[2:].replace("-", "_")) is not None:
            raise Invalid(f"{option} is not supported by banger-vmm: {reason}")
    if arguments.no_api and arguments.config_file is None:
        raise Invalid("--no-api needs --config-file: nobody else could say what to run")
    return arguments

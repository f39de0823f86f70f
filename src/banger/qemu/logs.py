"""The log: Firecracker's form, levels and filters (docs/logger.md there), to standard error or where /logger says."""

import logging
import os
import sys
import time

from banger.model.firecracker import Logger
from banger.qemu.metrics import Metrics
from banger.qemu.outputs import open_output

log = logging.getLogger("banger-vmm")
LEVELS = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": 1,
}
_NAMES = {"WARNING": "WARN", "CRITICAL": "ERROR"}


class LogHandler(logging.Handler):
    """One line for each record, `<time> [<id>:main<:level><:origin>] <message>`, in one write that never waits."""

    def __init__(self, vm_id: str, metrics: Metrics) -> None:
        super().__init__()
        self._id = vm_id
        self._metrics = metrics
        self._output = sys.stderr.fileno()
        self._show_level = False
        self._show_origin = False
        self._module = ""

    def configure(self, document: Logger) -> None:
        """Apply what is given; a level that is not given is Info, as in Firecracker. Raises `Invalid`."""
        if document.log_path is not None:
            output, before = open_output(document.log_path), self._output
            self._output = output
            if before != sys.stderr.fileno():
                os.close(before)
        logging.getLogger().setLevel(LEVELS[(document.level or "info").lower()])
        self._show_level = self._show_level if document.show_level is None else document.show_level
        self._show_origin = self._show_origin if document.show_log_origin is None else document.show_log_origin
        self._module = document.module or self._module

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(self._module):
            return
        try:
            os.write(self._output, self.line(record).encode(errors="replace"))
        except OSError:
            # the disk is full, or nobody reads the pipe: the VM must not notice
            self._metrics.count("logger", "missed_log_count")

    def line(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        level = f":{_NAMES.get(record.levelname, record.levelname)}" if self._show_level else ""
        origin = f":{record.module}.py:{record.lineno}" if self._show_origin else ""
        fraction = f"{record.created % 1:.9f}"[1:]
        return f"{when}{fraction} [{self._id}:main{level}{origin}] {record.getMessage()}\n"


def set_up(vm_id: str, metrics: Metrics, document: Logger) -> LogHandler:
    """Make this the process's only log. Raises `Invalid`."""
    handler = LogHandler(vm_id, metrics)
    logging.getLogger().addHandler(handler)
    # the library logs what we handle ourselves
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    handler.configure(document)
    return handler

"""Programs without privileges: who they are, and what bounds them."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from banger.model.errors import Invalid, Timeout
from banger.system.process import Completed
from banger.system.unprivileged import run_unprivileged


def run(directory: Path, text: str, *, timeout: float = 30, limit: int = 10_000, input: bytes = b"") -> Completed:
    argv = ["/bin/sh", "-c", text]
    return asyncio.run(run_unprivileged(argv, cwd=directory, timeout=timeout, limit=limit, input=input))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_roots_programs_are_somebody_without_capabilities() -> None:
    told = run(Path("/"), "exec cat /proc/self/status").stdout.decode()
    facts = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
    assert "0" not in facts["Uid"].split()
    assert facts["Groups"].strip() == ""
    assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert facts["NoNewPrivs"] == "1"


def test_input_output_and_status_are_the_programs() -> None:
    done = run(Path("/"), "cat; echo e >&2; exit 3", input=b"in")
    assert (done.stdout, done.stderr, done.status) == (b"in", b"e\n", 3)


def test_a_program_that_prints_without_end_is_ended() -> None:
    with pytest.raises(Invalid, match="printed more than 10000 bytes"):
        run(Path("/"), "while :; do echo xxxxxxxxxxxxxxxx; done")


def test_a_program_that_takes_too_long_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(Timeout):
        run(Path("/"), "sleep 60", timeout=0.3)
    assert time.monotonic() - begun < 20

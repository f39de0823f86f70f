"""What a program in a sandbox can do, and what not. Needs root and bubblewrap."""

import asyncio
import os
import shutil
from pathlib import Path

import psutil
import pytest

from banger.images.sandbox import Sandbox, while_there_is_room
from banger.model.capacity import Filesystem
from banger.model.errors import HostRequirement

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]


def test_a_program_in_a_sandbox_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    sandbox = Sandbox(writes={"/own": tmp_path / "mine"})
    full = Filesystem(total=1 << 30, used=1 << 30, free=0)
    monkeypatch.setattr("banger.images.sandbox.filesystem_of", lambda path: full)
    with pytest.raises(HostRequirement, match="became full"):
        asyncio.run(while_there_is_room(tmp_path, sandbox.run(["/bin/sleep", "98761"], timeout=60, on_line=print)))
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "98761"]]


def test_a_program_in_a_sandbox_sees_no_host(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "secret").write_text("")
    lines: list[str] = []
    script = 'ls /; ls /etc "$1" 2>&1; : >/own/x; cat /proc/net/dev; grep -c . /proc/mounts'
    sandbox = Sandbox(writes={"/own": tmp_path / "mine"})
    asyncio.run(
        sandbox.run(["/bin/sh", "-c", script, "sh", str(tmp_path / "secret")], timeout=60, on_line=lines.append)
    )
    assert "etc" not in lines
    assert "root" not in lines
    assert not any("eth" in line or "ens" in line for line in lines)
    assert any("secret" in line and "No such file" in line for line in lines)
    assert (tmp_path / "mine/x").exists()

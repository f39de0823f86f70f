import asyncio
import os
from pathlib import Path

import pytest

from banger.model.errors import CommandFailed, HostRequirement, Invalid, Timeout
from banger.system.debugfs import edit
from banger.system.e2fsprogs import Ended, reclaim, run_tool
from banger.system.ext4 import check_ext4
from tests.support.work_disks import HOME, debugfs, digest, make_disk, stand_in

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")


def _run(*words: str | Path | bytes, writes: bool = True, timeout: float = 20) -> Ended:
    return asyncio.run(run_tool(words, timeout=timeout, writes=writes))


@pytest.fixture
def lent(tmp_path: Path) -> Path:
    path = tmp_path / "work.ext4"
    path.write_bytes(b"content")
    path.chmod(0o600)
    return path


def test_nothing_can_be_gained(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch, "e2fsck", "cat /proc/self/status"):
        status = dict(line.split(":", 1) for line in _run("e2fsck", lent).out)
    assert status["NoNewPrivs"].strip() == "1"
    if os.geteuid() == 0:
        assert set(status["Uid"].split()) == set(status["Gid"].split())
        assert int(status["Uid"].split()[0]) >= 1_905_000_000
        assert status["Groups"].strip() == ""
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0


def test_only_what_is_lent_can_be_opened(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = lent.with_name("other")
    other.write_bytes(b"secret")
    other.chmod(0o600)
    script = f'cat "$1"; (printf more >>"$1"); cat {other} {lent}'
    with stand_in(monkeypatch, "e2fsck", script):
        done = _run("e2fsck", lent)
    assert done.out[0].startswith("content")
    if os.geteuid() == 0:
        assert "secret" not in str(done.lines)
        assert sum("Permission denied" in line for line in done.errors) == 2
    assert lent.read_bytes() == b"content"  # it may not become larger than it was


@AS_ROOT
def test_what_was_lent_is_ours_again_whatever_was_done_to_it(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch, "e2fsck", 'stat -L -c %u "$1"; chmod 666 "$1"; exit 3'):
        done = _run("e2fsck", lent)
    assert int(done.out[0]) >= 1_905_000_000
    assert done.status == 3
    assert (lent.stat().st_uid, lent.stat().st_gid, lent.stat().st_mode & 0o7777) == (0, 0, 0o600)


@AS_ROOT
def test_what_all_may_read_keeps_its_owner_while_it_is_read(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lent.chmod(0o444)
    with stand_in(monkeypatch, "e2fsck", 'stat -L -c %u "$1"; cat "$1"'):
        assert _run("e2fsck", lent, writes=False).out == ("0", "content")


@AS_ROOT
def test_what_is_still_lent_after_a_crash_is_taken_back(lent: Path) -> None:
    os.chown(lent, 1_905_000_123, 1_905_000_123)
    reclaim(lent)
    assert (lent.stat().st_uid, lent.stat().st_gid) == (0, 0)
    os.chown(lent, 2_000_000_123, 2_000_000_123)  # a jail's
    reclaim(lent)
    assert lent.stat().st_uid == 2_000_000_123


def test_what_it_says_names_the_real_file_and_harms_no_terminal(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch, "e2fsck", 'printf "$1: bad\\033[2J\\r\\n\\n/proc/self/fd/999\\n" >&2; exit 8'):
        done = _run("e2fsck", lent)
    assert done.errors == (f"{lent}: bad?[2J", "/proc/self/fd/999")
    assert done.argv == ("e2fsck", str(lent))
    assert f"e2fsck {lent}" in done.failure().hint


def test_what_it_says_without_end_is_bounded(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch, "e2fsck", "yes 0123456789 | head -c 30000000; echo; echo last"):
        done = _run("e2fsck", lent)
    assert sum(len(line) for line in done.out) < 20_000
    assert done.out[-1] == "last"


def test_memory_is_bounded(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch, "e2fsck", "ulimit -v; ulimit -c"):
        assert _run("e2fsck", lent).out == (str(2 << 20), "0")


def test_time_is_bounded(lent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch, "e2fsck", "exec sleep 600"), pytest.raises(Timeout, match=r"within 0\.3 s") as caught:
        _run("e2fsck", lent, timeout=0.3)
    assert str(lent) in caught.value.hint
    assert lent.stat().st_uid == os.geteuid()


def test_links_and_pipes_are_not_lent(lent: Path) -> None:
    link, pipe = lent.with_name("link"), lent.with_name("pipe")
    link.symlink_to(lent)
    os.mkfifo(pipe)
    for path in (link, pipe, lent.with_name("missing")):
        with pytest.raises(Invalid, match=path.name):
            _run("e2fsck", path)


def test_a_program_that_is_missing_is_named(lent: Path) -> None:
    with pytest.raises(HostRequirement, match="no-such-program") as caught:
        _run("no-such-program", lent)
    assert "e2fsprogs" in caught.value.hint


def test_a_check_changes_nothing_and_names_what_is_wrong(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "work.ext4", HOME)
    asyncio.run(check_ext4(disk))
    debugfs(disk, "sif /.bashrc links_count 7")
    before = digest(disk)
    with pytest.raises(Invalid, match=r"work\.ext4 has errors") as caught:
        asyncio.run(check_ext4(disk))
    assert f"e2fsck -f -n {disk}" in caught.value.hint
    assert "links_count" not in caught.value.message
    assert digest(disk) == before


@pytest.mark.parametrize("command", [("rm", "missing"), ("cd", "nowhere"), ("no_such_command",), ("mkdir", ".ssh")])
def test_an_edit_that_fails_is_an_error(tmp_path: Path, command: tuple[str, ...]) -> None:
    disk = make_disk(tmp_path / "work.ext4", HOME)
    with pytest.raises(CommandFailed, match="debugfs"):
        asyncio.run(edit(disk, [command]))


def test_words_of_an_edit_are_taken_as_they_are(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "work.ext4", HOME)
    names = ["two words", 'a "quoted" one', '"', "-p", "back\\slash", "#", "!ls"]
    asyncio.run(
        edit(disk, [("mkdir", name) for name in names] + [("write", b"one", "first"), ("write", b"two", "second")])
    )
    listed = debugfs(disk, "ls -p /")
    assert all(f"/{name}/" in listed for name in names)
    assert debugfs(disk, "cat first", "cat second").count("one") == 1

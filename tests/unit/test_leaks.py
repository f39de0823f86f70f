"""What a run leaves behind is seen; what runs beside it have there is not taken for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.leaks import difference, snapshot

OTHER = "bh0000-"


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(leaks.MARK, "ffff000000000000")
    return tmp_path_factory.getbasetemp()


def left(base: Path, monkeypatch: pytest.MonkeyPatch, **found: list[str]) -> dict[str, set[str]]:
    before = snapshot(base)
    for name, value in found.items():
        monkeypatch.setattr(leaks, name, lambda *_, value=value: value)
    after = snapshot(base)
    return {kind: names for kind, names in difference(before, after).items() if kind != "links"}


def test_what_lies_where_only_this_run_writes_or_nobody_is_expected_to_is_told(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("/tmp/bhffff-x/state", f"{base}/test_a0/mnt", "/mnt/odd", "/root/bh", "/run/netns/bhffff-host"):
        assert left(base, monkeypatch, _mounts=[place]) == {"mounts": {place}}
    for name in ("bhffff-host", "stray"):
        assert left(base, monkeypatch, _lines=[f"{name} (id: 3)"]) == {"network namespaces": {name}}
    for file in ("/tmp/bhffff-x/disk on loop7", f"{base}/a (deleted) on loop7", "/var/disk on loop7"):
        assert left(base, monkeypatch, _loop_devices=[file]) == {"loop devices": {file}}


def test_what_bears_another_runs_name_is_not(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = base.with_name("pytest-99999999")
    places = [f"/tmp/{OTHER}x/state", f"{beside}/test_a0/mnt", f"/run/netns/{OTHER}host"]
    assert left(base, monkeypatch, _mounts=places) == {}
    assert left(base, monkeypatch, _lines=[f"{OTHER}host (id: 3)"]) == {}
    assert left(base, monkeypatch, _loop_devices=[f"/tmp/{OTHER}x/disk on loop7"]) == {}


def test_processes_and_directories_are_told_by_the_mark(base: Path, tmp_path: Path) -> None:
    before = snapshot(base)
    words = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    own = subprocess.Popen(words, stdin=subprocess.PIPE)
    others = subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ, leaks.MARK: "0" * 16})
    directory = Path(f"/tmp/{leaks.prefix()}left")
    directory.mkdir()
    try:
        told = difference(before, snapshot(base))
    finally:
        directory.rmdir()
        for process in (own, others):
            process.communicate()
    assert [name.split()[0] for name in told.pop("processes")] == [str(own.pid)]
    assert told == {"temporary directories": {str(directory)}}

"""Installing releases: verified before unpacked, all or nothing, several side by side."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from banger.engine import archive as archive_module
from banger.engine import install as module
from banger.engine.install import install, installed, make_plan, read_record, remove, sweep
from banger.engine.releases import RELEASES, Release
from banger.model.engine import EngineInstalled, EngineInstallSpec
from banger.model.errors import BangerError, Busy, Conflict, HostRequirement, Invalid, NotFound
from banger.paths import Paths
from banger.system.download import DownloadFailed
from tests.support.firecracker import archive, members, program, put, release, sha256
from tests.support.mirror import Mirror, mirror

VERSION = "1.9.9"
NAME = f"firecracker-v{VERSION}-x86_64.tgz"


class Told:
    """Stages and notes, as an operation would store them."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    @contextlib.asynccontextmanager
    async def stage(self, name: str, *, deadline_s: float | None = None) -> AsyncIterator[None]:
        self.stages.append(name)
        yield

    def progress(self, done: int, total: int | None, unit: str) -> None:
        assert unit == "bytes"

    def note(self, text: str) -> None:
        self.notes.append(text)


class Bench:
    """Directories of a person, and a mirror with one release."""

    def __init__(self, directory: Path, server: Mirror) -> None:
        self.paths = Paths(directory / "s", directory / "r", directory / "c")
        self.server = server
        self.told = Told()
        self.content = release(VERSION)
        self.server.files[f"/v{VERSION}/{NAME}"] = self.content

    def spec(self, version: str | None = VERSION, **changes: Any) -> EngineInstallSpec:
        given = {"version": version, "mirror": self.server.url, "sha256": sha256(self.content)}
        return EngineInstallSpec(**{**given, **changes})

    def install(self, version: str | None = VERSION, **changes: Any) -> EngineInstalled:
        return asyncio.run(install(self.paths, make_plan(self.spec(version, **changes)), self.told))

    def left(self) -> list[str]:
        """Every file of the person's directories."""
        return sorted(
            str(Path(directory, name).relative_to(self.paths.state.parent))
            for directory, _, names in os.walk(self.paths.state.parent)
            for name in names
        )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("no_proxy", "*")
    with mirror() as server:
        yield Bench(tmp_path, server)


def test_an_installed_release_is_two_programs_and_their_record(bench: Bench) -> None:
    done = bench.install()
    where = bench.paths.engine("firecracker", VERSION)
    assert done.changed
    assert done.directory == str(where.directory)
    assert bench.left() == [
        f"s/engines/firecracker/{VERSION}/{name}" for name in ("engine.json", "firecracker", "jailer")
    ]
    assert where.firecracker.stat().st_mode & 0o7777 == 0o755
    record = read_record(where)
    assert record == done.record
    assert record.archive == f"sha256:{sha256(bench.content)}"
    assert record.firecracker == f"sha256:{sha256(where.firecracker.read_bytes())}"
    assert record.source == f"{bench.server.url}/v{VERSION}/{NAME}"
    assert "the person who installed it" in record.trust
    assert bench.told.stages == ["download", "verify", "unpack"]


def test_installing_it_again_changes_nothing_and_says_so(bench: Bench) -> None:
    bench.install()
    where = bench.paths.engine("firecracker", VERSION)
    before = where.firecracker.stat()
    again = bench.install()
    assert not again.changed
    assert where.firecracker.stat() == before
    assert len(bench.server.asked) == 1
    assert "installed already" in bench.told.notes[0]


def test_an_installed_release_is_not_replaced_by_another_archive(bench: Bench) -> None:
    bench.install()
    with pytest.raises(Conflict, match="another archive") as failure:
        bench.install(sha256="0" * 64)
    assert "engine remove" in failure.value.hint


def test_two_releases_lie_side_by_side(bench: Bench) -> None:
    other = release("1.11.3")
    bench.server.files["/v1.11.3/firecracker-v1.11.3-x86_64.tgz"] = other
    bench.install()
    bench.install("1.11.3", sha256=sha256(other))
    assert [where.directory.name for where in installed(bench.paths)] == ["1.11.3", VERSION]


def test_a_file_on_this_host_is_installed_and_left_where_it_is(bench: Bench, tmp_path: Path) -> None:
    file = put(tmp_path, VERSION)
    done = bench.install(file=str(file), mirror=None, version=None)
    assert done.record.source == str(file)
    assert file.exists()
    assert bench.told.stages == ["copy", "verify", "unpack"]
    assert bench.server.asked == []


def test_a_wrong_digest_is_found_before_anything_is_unpacked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banger.engine.archive.unpack", lambda *_: pytest.fail("unpacked before it was verified"))
    with pytest.raises(Invalid, match="not the one that is expected") as failure:
        bench.install(sha256="ab" * 32)
    assert failure.value.details["found"] == f"sha256:{sha256(bench.content)}"
    assert "ab" * 32 in failure.value.hint
    assert bench.left() == []


def test_a_pinned_release_from_a_mirror_that_lies_is_refused(bench: Bench) -> None:
    pinned = RELEASES[0].version
    bench.server.files[f"/v{pinned}/firecracker-v{pinned}-x86_64.tgz"] = release(pinned)
    with pytest.raises(Invalid, match="not the one that is expected"):
        bench.install(pinned, sha256=None)
    assert bench.left() == []


def pin(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    known = Release(version=VERSION, recorded="a test", **changes)
    monkeypatch.setattr(module, "find_release", lambda version: known if version == VERSION else None)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_pinned_release_needs_no_digest_of_the_person(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algorithm: str
) -> None:
    pin(monkeypatch, archive=module.digest_of(put(tmp_path, VERSION), algorithm))
    (tmp_path / NAME).unlink()
    done = bench.install(sha256=None)
    assert done.record.archive.startswith(f"{algorithm}:")
    assert "a test" in done.record.trust


def test_both_the_pinned_digest_and_the_persons_must_hold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, archive=f"sha256:{sha256(bench.content)}")
    with pytest.raises(Invalid, match="not the one that is expected"):
        bench.install(sha256="ab" * 32)
    assert bench.install().changed


def test_a_pinned_program_must_be_the_one_in_the_archive(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, archive=f"sha256:{sha256(bench.content)}", jailer=f"sha256:{'cd' * 32}")
    with pytest.raises(Invalid, match="jailer in the archive"):
        bench.install(sha256=None)
    assert bench.left() == []


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"sha256": None}, "no digest of Firecracker 1.9.9", "--sha256"),
        ({"sha256": "12"}, "not a SHA-256", "64"),
        ({"version": "1.7.0"}, "not new enough", "1.8.0"),
        ({"version": "../../x"}, "not a version", "1.15.1"),
        ({"file": "/x.tgz"}, "exclude", "one of them"),
        ({"file": "x.tgz", "mirror": None}, "absolute", "/"),
        ({"file": "/x.tgz", "mirror": None, "version": None}, "x.tgz", "--version"),
    ],
)
def test_what_cannot_be_installed_is_refused_at_once(
    bench: Bench, changes: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(Invalid, match=said) as failure:
        make_plan(bench.spec(**changes))
    assert hint in failure.value.hint


def test_with_no_pinned_release_the_way_by_hand_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recommended", lambda: None)
    with pytest.raises(Invalid, match="no release is pinned") as failure:
        make_plan(EngineInstallSpec())
    assert "--file" in failure.value.hint
    assert "--sha256" in failure.value.hint


def test_a_truncated_download_is_resumed_by_the_next_installation(bench: Bench) -> None:
    bench.server.cuts = [300, 0]
    with pytest.raises(DownloadFailed, match="300 of"):
        bench.install()
    assert bench.left() == [f"c/downloads/{NAME}.partial"]
    assert bench.install().changed
    assert bench.server.asked[-1][1] == "bytes=300-"
    assert not any("c/downloads" in path for path in bench.left())


def test_a_partial_of_something_else_is_fetched_again_by_itself(bench: Bench) -> None:
    bench.paths.downloads.mkdir(parents=True)
    (bench.paths.downloads / f"{NAME}.partial").write_bytes(b"another mirror's error page")
    assert bench.install().changed
    assert [wanted for _, wanted in bench.server.asked] == ["bytes=27-", ""]
    assert "fetched again" in bench.told.notes[0]


def test_an_archive_with_something_else_in_it_leaves_nothing(bench: Bench) -> None:
    bad = archive(members(VERSION, firecracker=program("x", machine=183)))
    bench.server.files[f"/v{VERSION}/{NAME}"] = bad
    with pytest.raises(Invalid, match="not a program for x86-64"):
        bench.install(sha256=sha256(bad))
    assert bench.left() == []


def test_a_full_disk_while_unpacking_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive_module, "_write", full)
    with pytest.raises(HostRequirement, match="no room"):
        bench.install()
    assert bench.left() == []


def test_a_cancelled_installation_leaves_only_the_part_that_came(bench: Bench) -> None:
    bench.server.stall = True

    async def scenario() -> None:
        task = asyncio.create_task(install(bench.paths, make_plan(bench.spec()), bench.told))
        await asyncio.to_thread(bench.server.stalled.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert bench.left() in ([], [f"c/downloads/{NAME}.partial"])
    assert list((bench.paths.engines / "firecracker").iterdir()) == []


@pytest.mark.parametrize("where", ["verify", "unpack"])
def test_cancelling_later_leaves_nothing_at_all(bench: Bench, where: str) -> None:
    class Slow(Told):
        @contextlib.asynccontextmanager
        async def stage(self, name: str, *, deadline_s: float | None = None) -> AsyncIterator[None]:
            if name == where:
                reached.set()
                await asyncio.Event().wait()
            yield

    async def scenario() -> None:
        task = asyncio.create_task(install(bench.paths, make_plan(bench.spec()), Slow()))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    reached = asyncio.Event()
    asyncio.run(scenario())
    assert bench.left() == []


def test_what_a_killed_daemon_left_is_swept_and_releases_stay(bench: Bench) -> None:
    bench.install()
    (bench.paths.engines / "firecracker" / ".tmp-dead" / "release").mkdir(parents=True)
    asyncio.run(sweep(bench.paths))
    assert [path.name for path in (bench.paths.engines / "firecracker").iterdir()] == [VERSION]


def attempt(work: Callable[[], Awaitable[None]]) -> BangerError | None:
    async def main() -> BangerError | None:
        try:
            await work()
        except BangerError as error:
            return error
        return None

    return asyncio.run(main())


def test_removing_takes_one_release_and_no_other(bench: Bench) -> None:
    other = release("1.11.3")
    bench.server.files["/v1.11.3/firecracker-v1.11.3-x86_64.tgz"] = other
    bench.install()
    bench.install("1.11.3", sha256=sha256(other))
    assert attempt(lambda: remove(bench.paths, f"v{VERSION}", dict)) is None
    assert [path.name for path in (bench.paths.engines / "firecracker").iterdir()] == ["1.11.3"]
    missing = attempt(lambda: remove(bench.paths, VERSION, dict))
    assert isinstance(missing, NotFound)
    assert "1.11.3" in missing.hint


def test_removing_is_refused_while_a_vm_runs_from_it(bench: Bench) -> None:
    bench.install()
    program = str(bench.paths.engine("firecracker", VERSION).firecracker)
    refused = attempt(lambda: remove(bench.paths, VERSION, lambda: {program: "demo"}))
    assert isinstance(refused, Busy)
    assert "demo" in refused.message
    assert "vm stop demo" in refused.hint
    assert len(installed(bench.paths)) == 1


@pytest.mark.parametrize("version", ["..", "", ".", "../../s", "1.9.9/..", "/etc"])
def test_removing_takes_nothing_that_is_no_release(bench: Bench, version: str) -> None:
    bench.install()
    before = bench.left()
    assert isinstance(attempt(lambda: remove(bench.paths, version, dict)), NotFound)
    assert bench.left() == before

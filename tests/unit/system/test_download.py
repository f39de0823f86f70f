"""Downloads: whole or not there, resumed, bounded, and ended at once when nobody wants them any more."""

import asyncio
import errno
import http.server
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from banger.model.errors import Conflict, HostRequirement, Invalid, Timeout
from banger.system import download as module
from banger.system.download import Downloaded, DownloadFailed, download
from tests.support.mirror import Mirror, mirror

BODY = os.urandom(1_500_000)
LIMIT = 10_000_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "*")
    with mirror() as made:
        made.files["/file"] = BODY
        yield made


def fetch(url: str, target: Path, **more: Any) -> Downloaded:
    return asyncio.run(download(url, target, **{"size_limit": LIMIT, **more}))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def test_a_file_arrives_whole_and_nothing_else_stays(server: Mirror, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "file"
    target.write_bytes(b"an older one")
    assert fetch(f"{server.url}/file", target, progress=lambda *seen: told.append(seen)) == Downloaded(len(BODY), 0)
    assert target.read_bytes() == BODY
    assert names(tmp_path) == ["file"]
    assert told[-1] == (len(BODY), len(BODY))


def test_a_connection_that_breaks_is_taken_up_again_within_one_call(server: Mirror, tmp_path: Path) -> None:
    server.cuts = [400_000, 300_000]
    fetch(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == ["", "bytes=400000-", "bytes=700000-"]


def test_what_a_failed_download_left_is_not_fetched_again(server: Mirror, tmp_path: Path) -> None:
    target = tmp_path / "file"
    server.cuts = [1000, 0]
    with pytest.raises(DownloadFailed, match="1000 of 1500000") as failure:
        fetch(f"{server.url}/file", target)
    assert "goes on where it stopped" in failure.value.hint
    assert not target.exists()
    assert partial(target).read_bytes() == BODY[:1000]
    assert fetch(f"{server.url}/file", target) == Downloaded(len(BODY), 1000)
    assert target.read_bytes() == BODY
    assert server.asked[-1] == ("/file", "bytes=1000-")


@pytest.mark.parametrize("left", [BODY[:700], BODY, BODY + b"more", b"x" * 2_000_000])
def test_a_server_that_knows_no_ranges_sends_all_of_it(server: Mirror, tmp_path: Path, left: bytes) -> None:
    server.ranges = False
    partial(tmp_path / "file").write_bytes(left)
    assert fetch(f"{server.url}/file", tmp_path / "file").resumed_at == 0
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_partial_that_is_complete_is_taken_as_it_is(server: Mirror, tmp_path: Path) -> None:
    partial(tmp_path / "file").write_bytes(BODY)
    assert fetch(f"{server.url}/file", tmp_path / "file") == Downloaded(len(BODY), len(BODY))
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_partial_that_is_longer_than_the_file_is_thrown_away(server: Mirror, tmp_path: Path) -> None:
    partial(tmp_path / "file").write_bytes(BODY + b"more")
    assert fetch(f"{server.url}/file", tmp_path / "file").resumed_at == 0
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_server_that_sends_another_part_is_asked_for_the_whole(server: Mirror, tmp_path: Path) -> None:
    partial(tmp_path / "file").write_bytes(BODY[:1000])
    server.wrong_part = True
    assert fetch(f"{server.url}/file", tmp_path / "file").resumed_at == 0
    assert (tmp_path / "file").read_bytes() == BODY


def test_redirects_are_followed_with_the_range(server: Mirror, tmp_path: Path) -> None:
    server.redirects["/old"] = "/file"
    partial(tmp_path / "file").write_bytes(BODY[:5])
    fetch(f"{server.url}/old", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked == [("/old", "bytes=5-"), ("/file", "bytes=5-")]


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_lead_nowhere_else_than_to_the_web(server: Mirror, tmp_path: Path, where: str) -> None:
    server.redirects["/old"] = where
    with pytest.raises(DownloadFailed, match=r"not safe|not allowed"):
        fetch(f"{server.url}/old", tmp_path / "file")
    assert names(tmp_path) == []


def test_a_loop_of_redirects_ends(server: Mirror, tmp_path: Path) -> None:
    server.redirects["/old"] = "/old"
    with pytest.raises(DownloadFailed, match="302"):
        fetch(f"{server.url}/old", tmp_path / "file")


@pytest.mark.parametrize("lengths", [True, False])
def test_more_than_the_limit_is_never_kept(server: Mirror, tmp_path: Path, lengths: bool) -> None:
    server.lengths = lengths
    with pytest.raises(DownloadFailed, match="at most 100000 bytes"):
        fetch(f"{server.url}/file", tmp_path / "file", size_limit=100_000)
    assert names(tmp_path) == []


def test_a_missing_file_is_told_with_status_and_url(server: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"404 .* http://127.0.0.1:\d+/nothing") as failure:
        fetch(f"{server.url}/nothing", tmp_path / "file")
    assert "mirror" in failure.value.hint
    assert names(tmp_path) == []


def test_a_host_without_a_server_is_a_matter_of_this_host(tmp_path: Path) -> None:
    with pytest.raises(HostRequirement, match=r"no way to 127\.0\.0\.1") as failure:
        fetch("http://127.0.0.1:1/file", tmp_path / "file")
    assert "proxy" in failure.value.hint


@pytest.mark.parametrize("url", ["ftp://a/b", "/plain/path", "http:///nobody", "http://[", "", "file://elsewhere/file"])
def test_a_url_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid):
        fetch(url, tmp_path / "file")
    assert names(tmp_path) == []


def test_a_silent_server_is_given_up_and_what_came_is_kept(server: Mirror, tmp_path: Path) -> None:
    server.stall = True
    with pytest.raises(Timeout, match="no byte came"):
        fetch(f"{server.url}/file", tmp_path / "file", stall_s=0.3)
    assert partial(tmp_path / "file").read_bytes() == BODY[: len(BODY) // 2]


def test_cancelling_ends_it_at_once_and_keeps_what_came(server: Mirror, tmp_path: Path) -> None:
    server.stall = True

    async def scenario() -> None:
        task = asyncio.create_task(download(f"{server.url}/file", tmp_path / "file", size_limit=LIMIT))
        await asyncio.to_thread(server.stalled.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    begun = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - begun < 5
    assert not (tmp_path / "file").exists()
    server.stall = False
    assert fetch(f"{server.url}/file", tmp_path / "file").size == len(BODY)
    assert (tmp_path / "file").read_bytes() == BODY


def test_two_downloads_of_one_file_do_not_mix(server: Mirror, tmp_path: Path) -> None:
    server.stall = True

    async def scenario() -> None:
        first = asyncio.create_task(download(f"{server.url}/file", tmp_path / "file", size_limit=LIMIT))
        await asyncio.to_thread(server.stalled.wait)
        with pytest.raises(Conflict, match="already"):
            await download(f"{server.url}/file", tmp_path / "file", size_limit=LIMIT)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    asyncio.run(scenario())


def test_a_disk_that_is_too_small_is_told_before_it_is_filled(
    server: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(HostRequirement, match="1500000 bytes are needed, 1000 are free") as failure:
        fetch(f"{server.url}/file", tmp_path / "file")
    assert "BANGER_CACHE_DIR" in failure.value.hint
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way_is_told_and_not_kept_full(
    server: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._write

    def full(file: io.FileIO, piece: bytes) -> None:
        if file.tell() + len(piece) > 500_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, piece)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(HostRequirement, match="No space left"):
        fetch(f"{server.url}/file", tmp_path / "file")
    assert names(tmp_path) == []


def test_a_partial_that_is_a_link_is_not_written_through(server: Mirror, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    partial(tmp_path / "file").symlink_to(tmp_path / "precious")
    with pytest.raises(HostRequirement, match="cannot be written"):
        fetch(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_file_url_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a source").write_bytes(BODY)
    assert fetch((tmp_path / "a source").as_uri(), tmp_path / "file") == Downloaded(len(BODY), 0)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_file_url_of_something_else_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "not a regular file"), ("nothing", "No such file"), (".", "Is a directory")):
        with pytest.raises(Invalid, match=said):
            fetch((tmp_path / name).as_uri(), tmp_path / "file")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500])
def test_what_is_no_web_server_is_told_as_that(tmp_path: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")

    class Odd(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.connection.recv(65536)
            self.connection.sendall(answer)

    with http.server.HTTPServer(("127.0.0.1", 0), Odd) as odd:
        thread = threading.Thread(target=odd.serve_forever, args=(0.02,))
        thread.start()
        try:
            with pytest.raises((DownloadFailed, HostRequirement)):
                fetch(f"http://127.0.0.1:{odd.server_address[1]}/file", tmp_path / "file")
        finally:
            odd.shutdown()
            thread.join()
    assert names(tmp_path) == []

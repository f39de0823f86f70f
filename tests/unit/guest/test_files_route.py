"""POST /files: the real agent and the host's client of it; then agents that mean harm."""

import contextlib
import io
import os
import pwd
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banger.client import files
from banger.client.files import Copied, Place
from banger.guest import protocol
from banger.guest.protocol import EXIT, STDERR, STDIN, STDOUT, encode
from banger.model.errors import BangerError, GuestUnreachable, Invalid, NotFound
from tests.unit.client import fake
from tests.unit.guest import pythons
from tests.unit.guest.blocking import agent

MIB = 1 << 20
KIB = 1024
LIMIT_S = 20.0


def place(folder: Path, path: Path | str, **options: object) -> Place:
    options = {"contents": False, **options}
    return Place(fake.document(folder / "v.sock"), str(path), **options)  # type: ignore[arg-type]


def unheard(entries: int, size: int) -> None:
    return


def upload(source: Path | str, target: Place) -> Copied:
    return files.upload(str(source), target, unheard)


def download(source: Place, target: Path | str, name: str = "named") -> Copied:
    return files.download(source, str(target), name, unheard)


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", "--no-dereference", one, other], check=False).returncode == 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "empty").mkdir(parents=True)
    for number in range(20):
        (top / f"file {number}").write_bytes(os.urandom(number * 9000))
    (top / "link").symlink_to("/nowhere")
    os.link(top / "file 7", top / "hard")
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (top / ("\N{SNOWMAN}" * 80)).write_text("x")
    return top


@pytest.mark.parametrize("version", pythons.VERSIONS)
def test_a_tree_goes_in_and_out_with_every_python(tmp_path: Path, source: Path, version: str) -> None:
    (source / "sparse").unlink()  # comparing holes takes long
    with agent(tmp_path, pythons.require(version)):
        done = upload(source, place(tmp_path, tmp_path / "inside"))
        assert same(source, tmp_path / "inside")
        assert download(place(tmp_path, tmp_path / "inside"), tmp_path / "back") == done
        assert same(source, tmp_path / "back")
    assert done == Copied(entries=25, bytes=9000 * sum(range(20)) + 1, skipped=[])


def test_contents_go_into_a_directory_that_is_made(tmp_path: Path, source: Path) -> None:
    with agent(tmp_path):
        upload(f"{source}/.", place(tmp_path, tmp_path / "a" / "b", contents=True))
        download(place(tmp_path, f"{tmp_path}/a/b/.", contents=True), tmp_path / "c" / "d")
    for made in (tmp_path / "a" / "b", tmp_path / "c" / "d"):
        assert sorted(path.name for path in made.iterdir()) == sorted(path.name for path in source.iterdir())
        assert (made / "sparse").stat().st_blocks == 0


def test_paths_are_taken_from_the_users_home_and_names_need_not_be_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"odd \xff")
    (tmp_path / odd).write_text("x")
    with agent(tmp_path):
        download(place(tmp_path, os.path.relpath(tmp_path / odd, pwd.getpwuid(os.getuid()).pw_dir)), tmp_path / "out")
        upload(tmp_path / odd, place(tmp_path, tmp_path / (odd + "2")))
    assert (tmp_path / "out").read_text() == (tmp_path / (odd + "2")).read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_who_owns_what_is_copied(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    os.chown(file, 1234, 5678)
    file.chmod(0o4755)
    with agent(tmp_path):
        upload(file, place(tmp_path, tmp_path / "plain"))
        upload(file, place(tmp_path, tmp_path / "given", user="daemon"))
        upload(file, place(tmp_path, tmp_path / "kept", keep_owners=True))
        download(place(tmp_path, file), tmp_path / "ours")
        download(place(tmp_path, file, keep_owners=True), tmp_path / "theirs")
    found = {name: (tmp_path / name).stat() for name in ("plain", "given", "kept", "ours", "theirs")}
    assert {name: (status.st_uid, status.st_gid, status.st_mode & 0o7777) for name, status in found.items()} == {
        "plain": (0, 0, 0o755),
        "given": (1, 1, 0o755),
        "kept": (1234, 5678, 0o4755),
        "ours": (0, 0, 0o755),
        "theirs": (1234, 5678, 0o4755),
    }


def test_what_is_missing_or_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir" / "file").mkdir(parents=True)
    with agent(tmp_path):
        with pytest.raises(NotFound, match=r"demo: .*nothing"):
            download(place(tmp_path, tmp_path / "nothing"), tmp_path / "out")
        with pytest.raises(NotFound, match=r"demo: .*no parent"):
            upload(tmp_path / "file", place(tmp_path, tmp_path / "no parent" / "x"))
        with pytest.raises(NotFound, match="no parent"):
            download(place(tmp_path, tmp_path / "file"), tmp_path / "no parent" / "x")
        with pytest.raises(NotFound, match="nothing"):
            upload(tmp_path / "nothing", place(tmp_path, tmp_path / "out"))
        with pytest.raises(BangerError, match=r"demo: .*not a directory"):
            download(place(tmp_path, f"{tmp_path}/file", contents=True), tmp_path / "out")
        with pytest.raises(BangerError, match=r"demo: .*in the way"):
            upload(tmp_path / "file", place(tmp_path, tmp_path / "dir"))
        with pytest.raises(Invalid, match="no user nobody-at-all"):
            upload(tmp_path / "file", place(tmp_path, tmp_path / "out", user="nobody-at-all"))
    assert not (tmp_path / "out").exists()


def test_what_the_guest_left_out_is_told(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    os.mkfifo(tmp_path / "top" / "fifo\x1b[2J")
    with agent(tmp_path):
        done = download(place(tmp_path, tmp_path / "top"), tmp_path / "out")
    assert done.skipped == ["top/fifo?[2J: a FIFO"]


def test_an_archive_passes_through(tmp_path: Path, source: Path) -> None:
    (source / "sparse").unlink()
    with agent(tmp_path):
        packed = subprocess.Popen(["tar", "cC", source, "."], stdout=subprocess.PIPE)
        assert packed.stdout is not None
        with packed.stdout as stream:
            files.upload_archive(stream.fileno(), place(tmp_path, tmp_path / "in", contents=True), unheard)
        assert packed.wait(10) == 0
        assert same(source, tmp_path / "in")
        with (tmp_path / "out.tar").open("wb") as file:
            files.download_archive(place(tmp_path, tmp_path / "in"), file.fileno(), unheard)
        assert subprocess.run(["tar", "xf", "out.tar", "--transform", "s/^in/out/"], cwd=tmp_path, check=True)
        assert same(source, tmp_path / "out")
        with (tmp_path / "in" / "file 9").open("rb") as file, pytest.raises(BangerError, match="damaged, or none"):
            files.upload_archive(file.fileno(), place(tmp_path, tmp_path / "no", contents=True), unheard)


def test_an_archive_for_a_wrong_place_ends_at_once_though_its_source_is_silent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    reader, writer = os.pipe()
    with agent(tmp_path), os.fdopen(reader), os.fdopen(writer, "wb") as slow:
        slow.write(tarfile.TarInfo("x").tobuf())
        slow.flush()
        with pytest.raises(BangerError, match=r"Not a directory|File exists"):
            files.upload_archive(reader, place(tmp_path, tmp_path / "file" / "sub", contents=True), unheard)


def test_the_agents_memory_does_not_grow_with_what_is_copied(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        for _ in range(64):
            file.write(b"\1" * MIB)
    with agent(tmp_path) as child:
        upload(tmp_path / "big", place(tmp_path, tmp_path / "in"))
        download(place(tmp_path, tmp_path / "in"), tmp_path / "out")
        status = Path(f"/proc/{child.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * KIB
    assert peak < 15 * MIB
    assert same(tmp_path / "big", tmp_path / "out")


def test_a_host_that_leaves_ends_the_copy_with_nothing_half_made(tmp_path: Path) -> None:
    target = tmp_path / "in"
    target.mkdir()
    with agent(tmp_path), files._Stream(place(tmp_path, target, contents=True), "write") as stream:
        info = tarfile.TarInfo("big")
        info.size = MIB
        stream.send(info.tobuf() + bytes(MIB // 2))
        wait_until(lambda: any(target.iterdir()))
        stream.__exit__(None, None, None)
        wait_until(lambda: not any(target.iterdir()))


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


REQUESTS = [
    (b"", 400),
    (b"[]", 400),
    (b'{"mode":"read"}', 400),
    (b'{"mode":"copy","path":"/x"}', 400),
    (b'{"mode":"read","path":""}', 400),
    (b'{"mode":"read","path":7}', 400),
    (b'{"mode":"read","path":"a\\u0000b"}', 400),
    (b'{"mode":"read","path":"\\ud800"}', 400),
    (b'{"mode":"read","path":"/x","as":"tar"}', 400),
    (b'{"mode":"write","path":"/x","owner":"me"}', 400),
    (b'{"mode":"write","path":"/x","user":0}', 400),
    (b'{"mode":"write","path":"/x","follow":true}', 400),
]


def test_malformed_requests_are_refused(tmp_path: Path) -> None:
    def ask(method: bytes, upgrade: bytes, body: bytes) -> int:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(LIMIT_S)
            stream.connect(str(tmp_path / "agent.sock"))
            stream.sendall(b"%s /files HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" % (method, upgrade, len(body)) + body)
            return int(stream.recv(4096).split(b" ")[1])

    upgrade = b"Upgrade: banger-files\r\n"
    with agent(tmp_path):
        for body, status in REQUESTS:
            assert ask(b"POST", upgrade, body) == status, body
        assert ask(b"POST", b"", REQUESTS[3][0]) == 426
        assert ask(b"GET", upgrade, b"") == 405


@pytest.mark.parametrize("frames", [b"\x09\x00\x00\x00\x00", b"\x00\xff\xff\xff\xff", encode(STDOUT, b"x")])
def test_a_frame_that_is_none_ends_the_copy(tmp_path: Path, frames: bytes) -> None:
    with agent(tmp_path), files._Stream(place(tmp_path, tmp_path / "in"), "write") as stream:
        stream._socket.sendall(frames)
        with pytest.raises(GuestUnreachable):
            stream.result()


# agents that mean harm

Script = Callable[[socket.socket], None]


def hostile(script: Script) -> fake.Serve:
    """An agent that accepts any copy, and then does as it likes."""

    def serve(stream: socket.socket) -> None:
        fake.read_until(stream, b"\n")
        stream.sendall(fake.OK)
        head = fake.read_until(stream, b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while left:
            left -= len(stream.recv(left))
        stream.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        script(stream)

    return serve


def says(*frames: bytes) -> Script:
    return lambda stream: stream.sendall(b"".join(frames))


def silent(stream: socket.socket) -> None:
    fake.read_until(stream, b"never")


def then_silent(frame: bytes) -> Script:
    def script(stream: socket.socket) -> None:
        stream.sendall(frame)
        silent(stream)

    return script


def endless(head: bytes, frame: bytes) -> Script:
    def script(stream: socket.socket) -> None:
        stream.sendall(head)
        while True:
            stream.sendall(frame)

    return script


def archive(name: str, data: bytes, **fields: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as opened:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        opened.addfile(info, io.BytesIO(data))
    return out.getvalue()


GOOD = encode(STDOUT, archive("x", b"data"))
DONE = encode(EXIT, b'{"entries":1,"bytes":4,"skipped":[]}')
READS: dict[str, tuple[Script, type[BangerError]]] = {
    "leaves": (lambda stream: None, GuestUnreachable),
    "leaves in the middle": (says(GOOD), GuestUnreachable),
    "is silent": (silent, GuestUnreachable),
    "is silent in the middle": (then_silent(GOOD), GuestUnreachable),
    "speaks no frames": (says(b"\xff" * 100), GuestUnreachable),
    "sends a frame too long": (says(struct.pack(">BI", STDOUT, 1 << 31)), GuestUnreachable),
    "sends input": (says(encode(STDIN, b"x")), GuestUnreachable),
    "complains": (says(encode(STDERR, b"x")), GuestUnreachable),
    "sends no archive": (says(encode(STDOUT, b"x" * 5000), DONE), BangerError),
    "ends too early": (says(encode(STDOUT, archive("x", b"data")[:1024]), DONE), BangerError),
    "sends nothing": (says(DONE), BangerError),
    "sends no end of the archive": (endless(GOOD, encode(STDOUT, bytes(60_000))), BangerError),
    "another entry": (says(encode(STDOUT, archive("x", b"")[:512] + archive("../y", b"")), DONE), BangerError),
    "absolute": (says(encode(STDOUT, archive("/tmp/banger-hostile", b"")), DONE), BangerError),
    "an error": (says(encode(EXIT, b'{"error":"\x1b[2Jbad","errno":2}'.replace(b"\x1b", b"\\u001b"))), NotFound),
    "an odd error": (says(encode(EXIT, b'{"error":["x"],"errno":"y"}')), BangerError),
    "no document": (says(GOOD, encode(EXIT, b"{")), GuestUnreachable),
    "a list": (says(GOOD, encode(EXIT, b"[]")), GuestUnreachable),
    "a nested document": (says(GOOD, encode(EXIT, b"[" * 60_000)), GuestUnreachable),
    "a document without counts": (says(GOOD, encode(EXIT, b'{"skipped":7}')), GuestUnreachable),
    "counts that are none": (says(GOOD, encode(EXIT, b'{"entries":1e999,"bytes":{},"skipped":[]}')), GuestUnreachable),
}


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SILENCE_S", 0.3)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT_S


@pytest.mark.usefixtures("short_silence")
@pytest.mark.parametrize("name", READS)
def test_a_hostile_agent_cannot_harm_who_copies_from_it(tmp_path: Path, name: str) -> None:
    script, expected = READS[name]
    (tmp_path / "out").mkdir()
    with (
        fake.listening(tmp_path / "v.sock", hostile(script)),
        bounded(),
        pytest.raises(expected) as caught,
    ):
        download(place(tmp_path, "/x"), tmp_path / "out")
    assert caught.value.message.isprintable()
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"named"}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_lines_about_what_was_left_out_are_bounded_and_harmless(tmp_path: Path) -> None:
    words = b'{"entries":1,"bytes":4,"skipped":[' + b",".join([b'"\\u001b[2J' + b"x" * 600 + b'"'] * 90) + b"]}"
    with fake.listening(tmp_path / "v.sock", hostile(says(GOOD, encode(EXIT, words)))):
        done = download(place(tmp_path, "/x"), tmp_path / "out")
    assert len(done.skipped) == 20
    assert all(line.isprintable() and len(line) <= 500 for line in done.skipped)
    assert (tmp_path / "out").read_bytes() == b"data"


WRITES: dict[str, Script] = {
    "leaves": lambda stream: None,
    "reads nothing": lambda stream: time.sleep(2),
    "is silent at the end": silent,
    "is done too early": says(DONE),
    "answers with an archive": says(GOOD),
    "speaks no frames": says(b"\xff" * 100),
}


@pytest.mark.usefixtures("short_silence")
@pytest.mark.parametrize("name", WRITES)
def test_a_hostile_agent_cannot_hold_who_copies_to_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * MIB if name != "is silent at the end" else 1000))
    with (
        fake.listening(tmp_path / "v.sock", hostile(WRITES[name])),
        bounded(),
        pytest.raises(GuestUnreachable),
    ):
        upload(tmp_path / "file", place(tmp_path, "/x"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_guest_that_sends_without_end_stops_at_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    head = encode(STDOUT, archive("x", b"")[:0] + tar_header("x", 10 << 30))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        with (
            fake.listening(tmp_path / "v.sock", hostile(endless(head, encode(STDOUT, bytes(protocol.MAX_PAYLOAD))))),
            pytest.raises(BangerError, match="No space") as caught,
        ):
            download(place(tmp_path, "/x"), small)
        assert "this host's disk is full" in caught.value.hint
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


def tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_in_the_guest_is_told(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (tmp_path / "big").write_bytes(bytes(4 * MIB))
    with agent(tmp_path):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
        try:
            with pytest.raises(BangerError, match="No space") as caught:
                upload(tmp_path / "big", place(tmp_path, small))
            assert "the guest's disk is full" in caught.value.hint
            assert not list(small.iterdir())
        finally:
            subprocess.run(["umount", small], check=True)

"""banger vm cp as a person uses it: the real command and the real agent, and a daemon that only says where that is."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from banger.guest.protocol import EXIT, STDOUT, encode
from tests.support import leaks
from tests.support.terminal import Terminal
from tests.unit.client import fake
from tests.unit.guest.blocking import agent
from tests.unit.guest.test_files_route import hostile

BANGER = str(Path(sys.executable).parent / "banger")
LIMIT_S = 30.0
MIB = 1 << 20


class Desk:
    """A person's shell: `here` is where they are, `there` a directory that the guest sees under the same name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here, self.there = root / "here", root / "there"
        self.env = {f"BANGER_{name}_DIR": str(root / "run") for name in ("STATE", "RUNTIME", "CACHE")}
        for folder in (self.here, self.there, root / "run"):
            folder.mkdir()

    def serve(self, stream: socket.socket) -> None:
        """The daemon: VMs `demo`, which runs, `still`, which does not, and `slow`, whose agent takes its time."""
        name = fake.read_until(stream, b"\r\n\r\n").split(b" ")[1].decode().removeprefix("/vms/")
        if name in ("demo", "still", "slow"):
            state = "stopped" if name == "still" else "running"
            path = self.root / ("slow.sock" if name == "slow" else "v.sock")
            stream.sendall(fake.answer("200 OK", fake.document(path, name=name, state=state)))
        else:
            stream.sendall(fake.answer("404 Not Found", {"error": {"code": "not_found", "message": f"no VM {name}"}}))

    def words(self, *words: str) -> list[str]:
        return [BANGER, "vm", "cp", *words]

    def start(self, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self.words(*words), cwd=self.here, env=os.environ | self.env, stderr=subprocess.PIPE, **options
        )

    def cp(self, *words: str, status: int = 0, input: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        done = subprocess.run(
            self.words(*words),
            cwd=self.here,
            env=os.environ | self.env,
            input=input,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == status, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        return done


@pytest.fixture
def desk() -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix=leaks.prefix()) as name:  # short, for the sake of socket paths
        made = Desk(Path(name))
        with agent(made.root), fake.listening(made.root / "run" / "api.sock", made.serve):
            yield made


@pytest.fixture
def source(desk: Desk) -> Path:
    top = desk.here / "src"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_text("a")
    (top / "sub" / "b").write_text("bb")
    return top


def listing(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (("src", "demo:THERE"), "src/sub/b"),
        (("src/", "demo:THERE/"), "src/sub/b"),
        (("src", "demo:THERE/new"), "new/sub/b"),
        (("src/.", "demo:THERE/new/deep"), "new/deep/sub/b"),
        (("./src/.", "demo:THERE"), "sub/b"),
        (("src/a", "demo:THERE"), "a"),
        (("src/a", "demo:THERE/new"), "new"),
        (("demo:HERE/src", "out"), "sub/b"),
        (("demo:HERE/src", "."), "src/sub/b"),
        (("demo:HERE/src/.", "out/deep"), "sub/b"),
        (("demo:HERE/src/a", "./demo:out"), ""),
    ],
)
@pytest.mark.usefixtures("source")
def test_things_land_where_docker_cp_would_put_them(desk: Desk, words: tuple[str, ...], made: str) -> None:
    desk.cp(*(word.replace("THERE", str(desk.there)).replace("HERE", str(desk.here)) for word in words))
    target = desk.there if words[0].startswith(("src", "./src")) else desk.here / words[1]
    assert (target / made).read_text() == ("bb" if made.endswith("b") else "a")


def test_the_document_and_silence(desk: Desk, source: Path) -> None:
    done = desk.cp("src", f"demo:{desk.there}", "--json")
    document = json.loads(done.stdout)
    assert document.pop("seconds") > 0
    assert document == {"entries": 4, "bytes": 3, "skipped": []}
    assert done.stderr == b""
    plain = desk.cp("src", f"demo:{desk.there}")
    assert (plain.stdout, plain.stderr) == (b"", b"")


def test_what_was_left_out_is_a_warning_and_exit_code_1(desk: Desk, source: Path) -> None:
    os.mkfifo(source / "fifo")
    done = desk.cp("src", f"demo:{desk.there}", "--json", status=1)
    assert done.stderr.decode() == "warning: src/fifo: a FIFO\n"
    assert json.loads(done.stdout)["skipped"] == ["src/fifo: a FIFO"]
    assert listing(desk.there) == ["src", "src/a", "src/sub", "src/sub/b"]


MISTAKES = [
    (("a", "b"), 2, "neither"),
    (("demo:a", "demo:b"), 2, "both"),
    (("-", "-"), 2, "neither"),
    (("./demo:a", "b"), 2, "neither"),
    (("nothing", "demo:/x"), 3, "nothing"),
    (("src", "nobody:/x"), 3, "nobody"),
    (("src", "still:/x"), 4, "stopped"),
    (("still:/x", "-"), 4, "stopped"),
    (("src", "demo:/no/parent/here"), 3, "/no/parent"),
    (("demo:/no/such", "."), 3, "/no/such"),
    (("demo:/etc/hostname", "no/parent/here"), 3, "no/parent"),
    (("demo:/etc/hostname", "src/a/x"), 1, "src/a"),
    (("src", "demo:/x", "-a", "--user", "daemon"), 2, "--user"),
    (("demo:/x", ".", "--user", "daemon"), 2, "--user"),
    (("src", "demo:/x", "--user", "nobody-at-all"), 2, "nobody-at-all"),
    (("demo:/etc/hostname", "-", "--json"), 2, "--json"),
    (("-", "demo:/tmp/banger-no"), 1, "the archive ends too early"),
]


@pytest.mark.parametrize(("words", "status", "said"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES])
@pytest.mark.usefixtures("source")
def test_a_mistake_gets_one_line_and_its_exit_code(desk: Desk, words: tuple[str, ...], status: int, said: str) -> None:
    before = listing(desk.root)
    lines = desk.cp(*words, status=status).stderr.decode().splitlines()
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert listing(desk.root) == before


def test_archives_on_standard_input_and_output(desk: Desk, source: Path) -> None:
    (source / "noise").write_bytes(os.urandom(4096))
    archive = subprocess.run(["tar", "cz", "-C", source, "."], capture_output=True, check=True).stdout
    assert b"is compressed" in desk.cp("-", f"demo:{desk.there}", status=1, input=archive).stderr
    archive = subprocess.run(["tar", "c", "-C", source, "."], capture_output=True, check=True).stdout
    desk.cp("-", f"demo:{desk.there}/new", input=archive)
    assert listing(desk.there / "new") == listing(source)
    out = desk.cp(f"demo:{desk.there}/new", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(out)) as opened:
        assert sorted(opened.getnames()) == ["new", "new/a", "new/noise", "new/sub", "new/sub/b"]


def test_a_reader_that_leaves_ends_it_quietly(desk: Desk) -> None:
    (desk.there / "big").write_bytes(bytes(8 * MIB))
    process = desk.start(f"demo:{desk.there}/big", "-", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(512)
    process.stdout.close()
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (141, b"")


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def half() -> bytes:
    info = tarfile.TarInfo("big")
    info.size = 8 * MIB
    return info.tobuf() + bytes(MIB)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_copy_in_leaves_nothing_half_made(desk: Desk, number: int, status: int) -> None:
    process = desk.start("-", f"demo:{desk.there}", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(half())
    process.stdin.flush()
    eventually(lambda: listing(desk.there))
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (status, b"interrupted\n" if number == signal.SIGINT else b"")
    eventually(lambda: not listing(desk.there))


@pytest.fixture
def shell(desk: Desk) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def run(*words: str) -> Terminal:
        variables = [f"{name}={value}" for name, value in desk.env.items()]
        opened.append(Terminal(["env", *variables, *desk.words(*words)], desk.here))
        return opened[-1]

    yield run
    for terminal in opened:
        terminal.close()


def slowly(stream: socket.socket) -> None:
    """A file of 8 MiB, in as many seconds as it takes a person to read a line or press two keys."""
    info = tarfile.TarInfo("big")
    info.size = 8 * MIB
    stream.sendall(encode(STDOUT, info.tobuf()))
    for _ in range(128):
        stream.sendall(encode(STDOUT, bytes(65536)))
        time.sleep(0.01)
    stream.sendall(encode(STDOUT, bytes(1024)) + encode(EXIT, b'{"entries":1,"bytes":8388608,"skipped":[]}'))


def test_progress_is_one_line_that_goes_away(desk: Desk, shell: Callable[..., Terminal]) -> None:
    with fake.listening(desk.root / "slow.sock", hostile(slowly)):
        terminal = shell("slow:big", "out")
        assert terminal.end(LIMIT_S) == 0
        quiet = shell("-q", "slow:big", "out")
        assert quiet.end(LIMIT_S) == 0
    eventually(lambda: "entries, 8 MiB in " in terminal.shown)
    first, *live, last = terminal.shown.split("\r\x1b[K")
    assert first == ""
    assert any("MiB/s" in line for line in live)
    assert all("\n" not in line for line in live)
    assert last.startswith("1 entries, 8 MiB in ")
    assert quiet.shown == ""


def test_control_c_half_way_out_leaves_nothing_half_made(desk: Desk, shell: Callable[..., Terminal]) -> None:
    with fake.listening(desk.root / "slow.sock", hostile(slowly)):
        terminal = shell("slow:big", "out")
        terminal.wait(lambda: "MiB/s" in terminal.shown, LIMIT_S)
        terminal.type(b"\x03")
        assert terminal.end(LIMIT_S) == 130
    eventually(lambda: terminal.shown.endswith("interrupted\r\n"))
    assert terminal.shown.rpartition("\r\x1b[K")[2] == "interrupted\r\n"
    assert listing(desk.here) == []

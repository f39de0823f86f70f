"""Commands run by the real agent, driven through the host's channel."""

import asyncio
import hashlib
import os
import pwd
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from banger.guest.channel import ExecResult, ExecStream, Guest, decode_exit
from banger.model.errors import Invalid
from banger.model.guest import ExecExit, ExecRequest, Stream
from tests.unit.guest.hybrid import guest

MB = 1024 * 1024
_DEADLINE = 60.0


def with_guest(folder: Path, test: Callable[[Guest], Awaitable[None]]) -> None:
    async def body() -> None:
        async with asyncio.timeout(_DEADLINE), guest(folder) as machine:
            await test(machine)

    asyncio.run(body())


def run(folder: Path, *argv: str, stdin: bytes = b"", **fields: object) -> ExecResult:
    results: list[ExecResult] = []

    async def one(machine: Guest) -> None:
        results.append(await machine.run(ExecRequest(argv=argv, **fields), stdin=stdin))  # type: ignore[arg-type]

    with_guest(folder, one)
    return results[0]


async def collect(stream: ExecStream) -> tuple[bytes, ExecExit]:
    """All of stdout, and the end."""
    out = b""
    while (frame := await stream.receive(timeout=30))[0] is not Stream.EXIT:
        out += frame[1]
    return out, decode_exit(frame[1])


async def read_until(stream: ExecStream, mark: bytes) -> bytes:
    out = b""
    while mark not in out:
        kind, payload = await stream.receive(timeout=30)
        assert kind is Stream.STDOUT, payload
        out += payload
    return out


async def ended(pid: int) -> None:
    """Wait until a process, which is not our child, is gone or a zombie."""
    async with asyncio.timeout(20):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state in "ZX":
                return
            await asyncio.sleep(0.01)


def test_status_and_both_outputs_apart(tmp_path: Path) -> None:
    result = run(tmp_path, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert result.exit == ExecExit(status=7)
    assert result.exit.exit_code() == 7


def test_killed_by_a_signal(tmp_path: Path) -> None:
    result = run(tmp_path, "sh", "-c", "kill -TERM $$")
    assert result.exit == ExecExit(signal=15)
    assert result.exit.exit_code() == 143


def test_stdin_ends_when_the_host_says_so(tmp_path: Path) -> None:
    assert run(tmp_path, "cat", stdin=b"through\n").stdout == b"through\n"


def test_command_that_ignores_its_stdin_still_ends(tmp_path: Path) -> None:
    assert run(tmp_path, "true", stdin=b"x" * (4 * MB)).exit == ExecExit(status=0)


def test_100_mb_each_way_is_byte_exact(tmp_path: Path) -> None:
    block = os.urandom(MB)
    expected = hashlib.sha256(block * 100).hexdigest()

    async def test(machine: Guest) -> None:
        async with await machine.exec(ExecRequest(argv=("cat",))) as stream:

            async def feed() -> None:
                for _ in range(100):
                    await stream.send(Stream.STDIN, block)
                await stream.send(Stream.STDIN, b"")

            feeder = asyncio.create_task(feed())
            digest = hashlib.sha256()
            while (frame := await stream.receive())[0] is Stream.STDOUT:
                digest.update(frame[1])
            await feeder
        assert digest.hexdigest() == expected
        assert decode_exit(frame[1]) == ExecExit(status=0)

    with_guest(tmp_path, test)


def test_output_waits_for_a_host_that_does_not_read(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        command = "head -c 20000000 /dev/zero; echo done >&2"
        async with await machine.exec(ExecRequest(argv=("sh", "-c", command))) as stream:
            await asyncio.sleep(0.3)  # every buffer on the way fills
            size, kinds = 0, set()
            while (frame := await stream.receive())[0] is not Stream.EXIT:
                kinds.add(frame[0])
                size += len(frame[1]) if frame[0] is Stream.STDOUT else 0
        assert size == 20_000_000
        assert Stream.STDERR in kinds
        assert decode_exit(frame[1]) == ExecExit(status=0)

    with_guest(tmp_path, test)


def test_environment_is_sane_and_can_be_added_to(tmp_path: Path) -> None:
    result = run(tmp_path, "env", env={"EXTRA": "a=b c", "LANG": "C"})
    env = dict(line.split("=", 1) for line in result.stdout.decode().splitlines())
    me = pwd.getpwuid(os.getuid())
    assert (env["HOME"], env["USER"], env["LOGNAME"]) == (me.pw_dir, me.pw_name, me.pw_name)
    assert (env["EXTRA"], env["LANG"]) == ("a=b c", "C")
    assert "/usr/bin" in env["PATH"].split(":")
    assert "TERM" not in env


def test_directory_is_the_one_asked_for_or_home(tmp_path: Path) -> None:
    assert run(tmp_path, "pwd", cwd="/usr").stdout == b"/usr\n"
    home = Path(pwd.getpwuid(os.getuid()).pw_dir).resolve()
    assert run(tmp_path, "pwd", "-P").stdout.decode() == f"{home}\n"


def test_process_starts_clean(tmp_path: Path) -> None:
    """No signal ignored or blocked, no descriptor beyond the three, a session of its own."""
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; cut -d' ' -f1,5,6 /proc/$$/stat; umask"
    lines = run(tmp_path, "sh", "-c", script).stdout.decode().splitlines()
    # bits 31 and 32 are the C library's own signals: no program may set them, and our parent may ignore them
    assert [int(line.split()[1], 16) & ~(0b11 << 31) for line in lines[:2]] == [0, 0]
    assert lines[2:6] == ["0", "1", "2", "3"]  # the last is ls reading the directory
    assert len(set(lines[6].split())) == 1
    assert lines[7] == "0022"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_user(tmp_path: Path) -> None:
    result = run(tmp_path, "sh", "-c", "id -un; id -G; echo $HOME $USER", user="nobody")
    nobody = pwd.getpwnam("nobody")
    groups = " ".join(map(str, os.getgrouplist("nobody", nobody.pw_gid)))
    assert result.stdout.decode() == f"nobody\n{groups}\n{nobody.pw_dir} nobody\n"


def test_unknown_user_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no-such-user"):
        run(tmp_path, "true", user="no-such-user")


@pytest.mark.parametrize("argv", [("echo", "a\0b"), ("",)])
def test_impossible_argv_is_refused(tmp_path: Path, argv: tuple[str, ...]) -> None:
    with pytest.raises(Invalid, match="argv"):
        run(tmp_path, *argv)


def test_not_found_is_127(tmp_path: Path) -> None:
    for name in ("no-such-program", "/no/such/program"):
        end = run(tmp_path, name).exit
        assert end.exit_code() == 127
        assert end.error is not None
        assert name in end.error


def test_not_executable_is_126(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program")
    assert run(tmp_path, str(tmp_path / "plain")).exit.exit_code() == 126
    result = run(tmp_path, "plain", env={"PATH": f"/nonexistent:{tmp_path}"})
    assert result.exit.exit_code() == 126


def test_missing_directory_is_named(tmp_path: Path) -> None:
    end = run(tmp_path, "true", cwd="/no/such/directory").exit
    assert end.error is not None
    assert "/no/such/directory" in end.error


def test_timeout_ends_everything_and_keeps_the_output(tmp_path: Path) -> None:
    result = run(tmp_path, "sh", "-c", "echo before; sleep 600 & echo $!; trap '' TERM; wait; sleep 600", timeout_s=0.3)
    assert result.exit == ExecExit(timeout=True)
    assert result.exit.exit_code() == 124
    before, pid = result.stdout.split()
    assert before == b"before"
    asyncio.run(ended(int(pid)))


def test_terminal_has_a_size_that_follows_the_host(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        script = "trap 'stty size; exit 3' WINCH; tty; stty size; echo $TERM; echo ready; while :; do sleep 0.05; done"
        request = ExecRequest(argv=("sh", "-c", script), tty=True, rows=30, cols=100)
        async with await machine.exec(request) as stream:
            first = await read_until(stream, b"ready")
            await stream.resize(41, 121)
            rest, end = await collect(stream)
        assert first.startswith(b"/dev/pts/")
        assert b"30 100\r\nxterm-256color\r\n" in first
        assert b"41 121" in rest
        assert end == ExecExit(status=3)

    with_guest(tmp_path, test)


def test_terminal_echoes_and_end_of_input_ends_it(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        async with await machine.exec(ExecRequest(argv=("cat",), tty=True)) as stream:
            await stream.send(Stream.STDIN, b"typed\n")
            await stream.send(Stream.STDIN, b"")
            out, end = await collect(stream)
        assert out.count(b"typed\r\n") == 2
        assert end == ExecExit(status=0)

    with_guest(tmp_path, test)


def test_control_c_on_a_terminal_interrupts_the_foreground(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        async with await machine.exec(ExecRequest(argv=("cat",), tty=True)) as stream:
            await stream.send(Stream.STDIN, b"go\n")
            await read_until(stream, b"go\r\ngo\r\n")  # the echo, and cat
            await stream.send(Stream.STDIN, b"\x03")
            _, end = await collect(stream)
        assert end == ExecExit(signal=2)

    with_guest(tmp_path, test)


@pytest.mark.parametrize(("signal", "number"), [("INT", 2), ("SIGUSR1", 10), (15, 15)])
def test_signal_reaches_the_command(tmp_path: Path, signal: str | int, number: int) -> None:
    async def test(machine: Guest) -> None:
        async with await machine.exec(ExecRequest(argv=("cat",))) as stream:
            await stream.send(Stream.STDIN, b"go")
            await read_until(stream, b"go")
            await stream.signal("NONSENSE")
            await stream.signal(signal)
            _, end = await collect(stream)
        assert end == ExecExit(signal=number)

    with_guest(tmp_path, test)


def test_nothing_survives_a_host_that_leaves(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        script = "trap '' HUP; sleep 600 & echo $!; echo $$; echo end; wait"
        async with await machine.exec(ExecRequest(argv=("sh", "-c", script))) as stream:
            pids = (await read_until(stream, b"end")).split()[:2]
        for pid in pids:
            await ended(int(pid))

    with_guest(tmp_path, test)


def test_jobs_of_a_terminal_do_not_survive_either(tmp_path: Path) -> None:
    """With job control each job is a process group of its own."""

    async def test(machine: Guest) -> None:
        script = "set -m; trap '' HUP; sleep 600 & echo $! end; sleep 600"
        async with await machine.exec(ExecRequest(argv=("sh", "-c", script), tty=True)) as stream:
            pid = (await read_until(stream, b"end")).split()[0]
        await ended(int(pid))

    with_guest(tmp_path, test)


def test_background_process_does_not_hold_the_end_back(tmp_path: Path) -> None:
    """It keeps stdout open and lives on after the command, as with ssh."""
    result = run(tmp_path, "sh", "-c", "sleep 600 & echo $!; exit 5")
    assert result.exit == ExecExit(status=5)
    pid = int(result.stdout)
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, 9)


def test_20_at_once_keep_their_streams_apart(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        async def one(number: int) -> ExecResult:
            return await machine.run(ExecRequest(argv=("sh", "-c", f"cat; exit {number}")), stdin=b"%d" % number * MB)

        results = await asyncio.gather(*map(one, range(20)))
        for number, result in enumerate(results):
            assert result.exit == ExecExit(status=number)
            assert result.stdout == b"%d" % number * MB

    with_guest(tmp_path, test)


def test_too_much_output_is_refused_not_kept(tmp_path: Path) -> None:
    async def test(machine: Guest) -> None:
        with pytest.raises(Invalid, match="1000"):
            await machine.run(ExecRequest(argv=("yes",)), max_output=1000)

    with_guest(tmp_path, test)

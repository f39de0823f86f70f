"""The shell in a guest, against an SSH server in this process: what commands print, and how they end or do not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from banger.guest.shell import LINE_MAX, Lines, Shell, login
from banger.model.errors import GuestUnreachable, Timeout

Process = asyncssh.SSHServerProcess[bytes]


class Server:
    """An sshd of one host key that lets one key in. `commands` are what it can run."""

    def __init__(self, folder: Path) -> None:
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.key = folder / "key"
        client = asyncssh.generate_private_key("ssh-ed25519")
        client.write_private_key(str(self.key))
        self._allowed = asyncssh.import_authorized_keys(client.export_public_key().decode())
        self.killed = asyncio.Event()
        self.signals: list[str] = []

    @property
    def host_line(self) -> str:
        return self.host_key.export_public_key().decode()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self.host_key],
            authorized_client_keys=self._allowed,
            process_factory=self._process,
            encoding=None,
        )
        try:
            yield
        finally:
            self._acceptor.close()
            await self._acceptor.wait_closed()

    async def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `Guest.tunnel` returns them."""
        return await asyncio.open_connection("127.0.0.1", self._acceptor.get_port())

    async def _process(self, process: Process) -> None:
        command = process.command or ""
        await getattr(self, f"do_{command.split()[0]}")(process)

    async def do_say(self, process: Process) -> None:
        process.stdout.write(b"one\ntwo\r\n")
        process.stderr.write(b"a complaint\n")
        process.stdout.write(b"no end")
        process.exit(0)

    async def do_fail(self, process: Process) -> None:
        process.stdout.write(b"it is broken\n")
        process.exit(3)

    async def do_die(self, process: Process) -> None:
        process.exit_with_signal("KILL")

    async def do_hang(self, process: Process) -> None:
        try:
            while True:  # at its end it returns at once, and raises when a signal comes
                await process.stdin.read()
                await asyncio.sleep(0.01)
        except asyncssh.SignalReceived as signal:
            self.signals.append(signal.signal)
            self.killed.set()

    async def do_flood(self, process: Process) -> None:
        while True:
            process.stdout.write(b"x" * 65536)
            await process.stdout.drain()

    async def do_leave(self, process: Process) -> None:
        """End, with something left that holds the output open."""
        process.stdout.write(b"done\n")
        channel = process.channel
        channel._send_request(b"exit-status", (0).to_bytes(4, "big"))
        await asyncio.sleep(3600)

    async def do_swallow(self, process: Process) -> None:
        read = b""
        while piece := await process.stdin.read(65536):
            read += piece
        process.stdout.write(b"%d\n" % len(read))
        process.exit(0)

    async def do_refuse(self, process: Process) -> None:
        """End without reading anything."""
        process.exit(7)

    async def do_vanish(self, process: Process) -> None:
        process.channel.get_connection().abort()


def run(folder: Path, scenario: Callable[[Server, Shell], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            server = Server(folder)
            async with (
                server.running(),
                login(await server.streams(), [server.host_line], server.key) as shell,
            ):
                await scenario(server, shell)

    asyncio.run(main())


@pytest.mark.parametrize(("command", "status"), [("say", 0), ("fail", 3), ("die", 137)])
def test_a_command_ends_with_its_status(tmp_path: Path, command: str, status: int) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        assert await shell.run(command, lambda _: None, timeout=20) == status

    run(tmp_path, scenario)


def test_both_streams_come_as_lines(tmp_path: Path) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        heard: list[str] = []
        await shell.run("say", heard.append, timeout=20)
        assert sorted(line for line in heard if line) == ["a complaint", "no end", "one", "two"]

    run(tmp_path, scenario)


def test_a_command_that_hangs_is_killed_at_its_deadline_and_the_next_one_runs(tmp_path: Path) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        with pytest.raises(Timeout, match=r"within 0\.2 s"):
            await shell.run("hang", lambda _: None, timeout=0.2)
        await server.killed.wait()
        assert server.signals == ["KILL"]
        assert await shell.run("say", lambda _: None, timeout=20) == 0

    run(tmp_path, scenario)


def test_a_flood_without_an_end_is_heard_in_bounded_lines_until_the_deadline(tmp_path: Path) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        longest = 0

        def heard(line: str) -> None:
            nonlocal longest
            longest = max(longest, len(line))

        with pytest.raises(Timeout):
            await shell.run("flood", heard, timeout=0.5)
        assert longest == LINE_MAX

    run(tmp_path, scenario)


def test_a_cancelled_command_is_killed(tmp_path: Path) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        task = asyncio.create_task(shell.run("hang", lambda _: None, timeout=20))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.killed.wait()

    run(tmp_path, scenario)


def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        heard: list[str] = []
        assert await shell.run("leave", heard.append, timeout=20) == 0
        assert heard == ["done"]

    run(tmp_path, scenario)


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(300_000)


@pytest.mark.parametrize(("command", "status", "heard"), [("swallow", 0, ["6000000"]), ("refuse", 7, [])])
def test_what_is_sent_arrives_or_is_not_wanted(tmp_path: Path, command: str, status: int, heard: list[str]) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        lines: list[str] = []
        assert await shell.run(command, lines.append, timeout=20, stdin=_pieces(20)) == status
        assert [line for line in lines if line] == heard

    run(tmp_path, scenario)


def test_a_source_that_fails_ends_the_command_with_its_error(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ValueError("no more")

    async def scenario(server: Server, shell: Shell) -> None:
        with pytest.raises(ValueError, match="no more"):
            await shell.run("swallow", lambda _: None, timeout=20, stdin=broken())

    run(tmp_path, scenario)


def test_a_guest_that_goes_away_is_said(tmp_path: Path) -> None:
    async def scenario(server: Server, shell: Shell) -> None:
        with pytest.raises(GuestUnreachable, match="was lost"):
            await shell.run("vanish", lambda _: None, timeout=20)

    run(tmp_path, scenario)


def test_another_host_key_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        server = Server(tmp_path)
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        async with server.running():
            for keys in ([other], [], ["nonsense"]):
                with pytest.raises(GuestUnreachable, match="lets nobody in"):
                    async with login(await server.streams(), keys, server.key):
                        raise AssertionError("logged in")

    asyncio.run(main())


def test_another_client_key_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        server = Server(tmp_path)
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(server.key))
        async with server.running():
            with pytest.raises(GuestUnreachable, match="lets nobody in"):
                async with login(await server.streams(), [server.host_line], server.key):
                    raise AssertionError("logged in")

    asyncio.run(main())


def test_lines_are_cut_at_returns_and_at_their_longest() -> None:
    heard: list[str] = []
    lines = Lines(heard.append)
    lines.feed(b"10%\r20%\rdone\nhal")
    lines.feed(b"f\n" + b"y" * (LINE_MAX + 5))
    lines.end()
    assert [line for line in heard if line] == ["10%", "20%", "done", "half", "y" * LINE_MAX, "y" * 5]

"""The opencode server of a VM: its credentials, its start, and whether it answers. All of it over vsock."""

import asyncio
import base64
import contextlib
import secrets

import msgspec

from banger.config import Settings
from banger.guest.channel import Guest
from banger.jobs.operations import Job
from banger.model.errors import Conflict, GuestUnreachable, Timeout, Unsupported
from banger.model.guest import ExecRequest
from banger.model.vm import OPENCODE_PORT, OPENCODE_USER, OpencodeAccess, Vm
from banger.paths import Paths
from banger.system.files import write_new
from banger.system.http import request as http_request

HEALTH_PATH = "/global/health"
ANSWER_S = 10.0
FIRST_ANSWER_S = 1.0
AGAIN_S = 0.25
COLD, EMULATED = 2.0, 4.0  # how much longer than a warm start with hardware's help
LOG_LINES = 10
_ANSWER_MAX = 64 * 1024


class _Answer(msgspec.Struct):
    """The answer of `GET /global/health`; an unknown path is answered 200 with a page, so the JSON is what counts."""

    healthy: bool


class Opencode:
    """One daemon's hold on the opencode servers of its VMs."""

    def __init__(self, paths: Paths, settings: Settings) -> None:
        self._paths = paths
        self._settings = settings

    def access(self, vm: Vm) -> OpencodeAccess:
        """Port and credentials, which are made at the first call and kept 0600 with the VM. Raises `Conflict`."""
        if not vm.opencode:
            raise Conflict(
                f"{vm.name} runs no opencode", hint="create a VM without --no-opencode from an image that has it"
            )
        path = self._paths.vm(vm.id).opencode
        try:
            return msgspec.json.decode(path.read_bytes(), type=OpencodeAccess)
        except FileNotFoundError:
            made = OpencodeAccess(port=OPENCODE_PORT, username=OPENCODE_USER, password=secrets.token_urlsafe(24))
        except msgspec.MsgspecError as error:
            raise Conflict(
                f"{path} is damaged: {error}", hint=f"remove it, then `banger vm restart {vm.name}`"
            ) from error
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        write_new(fresh, msgspec.json.encode(made), 0o600)
        fresh.rename(path)
        return made

    def deadline_s(self, vm: Vm, *, cold: bool) -> float:
        """How long the server may take: longer when all of the guest has just booted, and under emulation."""
        factor = (COLD if cold else 1.0) * (EMULATED if vm.accelerator == "tcg" else 1.0)
        return self._settings.opencode_timeout_s * factor

    async def bring_up(self, job: Job, vm: Vm, *, wait: bool) -> None:
        """Hand the password over, which starts the server, and wait until it answers. Raises `Timeout`."""
        async with job.stage("start opencode", deadline_s=ANSWER_S * 2):
            await self._guest(vm).give_opencode_password(self.access(vm).password)
        if not wait:
            return
        try:
            async with job.stage("opencode", deadline_s=self.deadline_s(vm, cold=True)):
                await self._until_ready(vm)
        except Timeout as error:
            raise Timeout(
                f"opencode in {vm.name} did not answer: {error.message}",
                hint="a slow host may need a larger opencode_timeout_s; --no-wait-opencode does not wait",
                details={"opencode": await self._last_words(vm)},
            ) from error

    async def _until_ready(self, vm: Vm) -> None:
        left = self.deadline_s(vm, cold=True)
        answer_s = FIRST_ANSWER_S
        while True:
            try:
                # the agent tries inside the guest until the port listens: one call, no polling from here
                await self.ask(vm, wait_s=left, answer_s=answer_s)
                return
            except GuestUnreachable:
                # a request that comes as soon as the port listens is never answered: short tries first
                answer_s = min(2 * answer_s, ANSWER_S)
                await asyncio.sleep(AGAIN_S)

    async def ask(self, vm: Vm, *, wait_s: float = 0.0, answer_s: float = ANSWER_S) -> None:
        """Return when the server says that it is healthy. Raises `GuestUnreachable`."""
        reader, writer = await self._guest(vm).tunnel("127.0.0.1", OPENCODE_PORT, wait_s=wait_s)
        try:
            async with asyncio.timeout(answer_s):
                response = await http_request(
                    reader, writer, "GET", HEALTH_PATH, headers=_basic(self.access(vm)), max_body=_ANSWER_MAX
                )
        except TimeoutError as error:
            raise GuestUnreachable(f"opencode did not answer within {answer_s:g} s") from error
        finally:
            writer.transport.abort()
        if response.status != 200:
            raise GuestUnreachable(f"opencode answered {response.status}")
        try:
            healthy = msgspec.json.decode(response.body, type=_Answer).healthy
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise GuestUnreachable("opencode's answer makes no sense") from error
        if not healthy:
            raise GuestUnreachable("opencode says that it is not healthy")

    async def _last_words(self, vm: Vm) -> list[str]:
        argv = ("journalctl", "--unit=opencode", f"--lines={LOG_LINES}", "--no-pager", "--output=cat")
        with contextlib.suppress(GuestUnreachable, Unsupported):
            result = await self._guest(vm).run(ExecRequest(argv=argv, timeout_s=ANSWER_S), max_output=_ANSWER_MAX)
            return result.stdout.decode(errors="replace").splitlines()[-LOG_LINES:]
        return []

    def _guest(self, vm: Vm) -> Guest:
        return Guest(self._paths.vm(vm.id).vsock_socket)


def _basic(access: OpencodeAccess) -> dict[str, str]:
    """RFC 7617."""
    pair = base64.b64encode(f"{access.username}:{access.password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}

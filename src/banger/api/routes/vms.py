"""/vms"""

import asyncio
import base64
import contextlib
from typing import Annotated, Any

import msgspec
from litestar import Controller, MediaType, Response, WebSocket, delete, get, patch, post, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Parameter
from litestar.response import Stream as ByteStream

from banger.api.services import Services
from banger.model.documents import VmDocument
from banger.model.errors import BangerError, Invalid
from banger.model.guest import ExecRequest, Stream
from banger.model.operation import Operation
from banger.model.vm import OpencodeAccess, Report, VmChange, VmHealth, VmSpec
from banger.service.vms import ExecStream

Socket = WebSocket[Any, Any, Any]
Force = Annotated[bool, Parameter(description="Do not wait for the guest")]
KeepWorkDisk = Annotated[bool, Parameter(description="Its work disk becomes a volume")]
WaitOpencode = Annotated[bool, Parameter(description="Return only when opencode answers, where it shall run")]
HEALTH_WAIT_MAX_S = 600
FIRST_MESSAGE_S = 10.0


class Vms(Controller):
    path = "/vms"
    tags = ("vms",)

    @get(summary="Every VM, by name")
    async def list_vms(self, services: Services) -> list[VmDocument]:
        return services.vms.list()

    @post(status_code=202, summary="Create and boot a VM")
    async def create_vm(self, data: VmSpec, services: Services) -> Operation:
        return services.vms.create(data)

    @get("/{ref:str}", summary="One VM, by name, id, or unambiguous id prefix")
    async def show_vm(self, ref: str, services: Services) -> VmDocument:
        return services.vms.show(ref)

    @delete("/{ref:str}", status_code=202, summary="Delete a VM and all its data")
    async def delete_vm(self, ref: str, services: Services, keep_work_disk: KeepWorkDisk = False) -> Operation:
        return services.vms.delete(ref, keep_work_disk=keep_work_disk)

    @patch("/{ref:str}", status_code=202, summary="Enlarge a VM's work disk, or give it a root disk of another image")
    async def change_vm(self, ref: str, data: VmChange, services: Services) -> Operation:
        return services.vms.change(ref, data)

    @post("/{ref:str}/start", status_code=202, summary="Boot a stopped VM")
    async def start_vm(self, ref: str, services: Services, wait_opencode: WaitOpencode = True) -> Operation:
        return services.vms.start(ref, wait_opencode=wait_opencode)

    @post("/{ref:str}/stop", status_code=202, summary="Power a VM off")
    async def stop_vm(self, ref: str, services: Services, force: Force = False) -> Operation:
        return services.vms.stop(ref, force=force)

    @post("/{ref:str}/restart", status_code=202, summary="Power a VM off and boot it")
    async def restart_vm(
        self, ref: str, services: Services, force: Force = False, wait_opencode: WaitOpencode = True
    ) -> Operation:
        return services.vms.restart(ref, force=force, wait_opencode=wait_opencode)

    @post("/{ref:str}/pause", status_code=202, summary="Stop a VM's processors and keep its memory")
    async def pause_vm(self, ref: str, services: Services) -> Operation:
        return services.vms.pause(ref)

    @post("/{ref:str}/resume", status_code=202, summary="Let a paused VM run on")
    async def resume_vm(self, ref: str, services: Services) -> Operation:
        return services.vms.resume(ref)

    @post("/{ref:str}/check", status_code=202, summary="Look for damage in a stopped VM's disks, changing nothing")
    async def check_vm(self, ref: str, services: Services) -> Operation:
        return services.check.check(ref)

    @get("/{ref:str}/health", summary="Check a VM now")
    async def vm_health(
        self,
        ref: str,
        services: Services,
        wait: Annotated[
            float, Parameter(ge=0, le=HEALTH_WAIT_MAX_S, description="seconds to wait until nothing is starting")
        ] = 0,
    ) -> VmHealth:
        return await services.vms.health(ref, wait_s=wait)

    @get("/{ref:str}/opencode", summary="Port and credentials of a VM's opencode server")
    async def vm_opencode(self, ref: str, services: Services) -> OpencodeAccess:
        return services.vms.opencode(ref)

    @post("/{ref:str}/report", status_code=201, summary="Write a file with all that is known of a VM, gone ones too")
    async def report_vm(self, ref: str, services: Services) -> Report:
        return await services.reporter.write(ref)

    @get("/{ref:str}/logs", media_type=MediaType.TEXT, summary="The end of the console or engine log, and what comes")
    async def vm_logs(
        self,
        ref: str,
        services: Services,
        source: str = "console",
        limit: Annotated[int, Parameter(ge=0, le=4194304, description="bytes")] = 65536,
        follow: Annotated[bool, Parameter(description="Go on until the VM is deleted or the daemon ends")] = False,
        after: Annotated[
            str | None,
            Parameter(max_length=1024, description="Follow behind these bytes, the last 256 seen (URL-safe base64)"),
        ] = None,
    ) -> Response[Any]:
        if not follow:
            return Response(services.vms.logs(ref, source, limit), media_type=MediaType.TEXT)
        pieces = services.vms.follow_logs(ref, source, _decoded(after), limit)
        await anext(pieces)  # what forbids to follow is told by the status
        return ByteStream(pieces, media_type=MediaType.TEXT)

    @websocket("/{ref:str}/exec")
    async def exec_in_vm(self, socket: Socket, ref: str, services: Services) -> None:
        """First message: an ExecRequest as JSON text. Then binary messages both ways, each a stream number
        (one byte, see `Stream`) and its payload; the last one from here is EXIT. An error is one text message.
        """
        await socket.accept()
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                first = await socket.receive_text()
            stream = await services.vms.exec(ref, msgspec.json.decode(first, type=ExecRequest))
        except msgspec.DecodeError as error:
            await _refuse(socket, Invalid(f"the exec request is malformed: {error}"))
        except BangerError as error:
            await _refuse(socket, error)
        except (TimeoutError, WebSocketDisconnect):
            return
        else:
            await _relay(socket, stream)


def _decoded(text: str | None) -> bytes | None:
    try:
        return None if text is None else base64.urlsafe_b64decode(text)
    except ValueError as error:
        raise Invalid("`after` is not URL-safe base64", hint="without it the last `limit` bytes come first") from error


async def _refuse(socket: Socket, error: BangerError) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(msgspec.json.encode({"error": error.to_dict()}).decode())
        await socket.close()


async def _relay(socket: Socket, stream: ExecStream) -> None:
    """Frames both ways until EXIT, or until either side is gone; then the other is closed, which ends the command."""
    upstream = asyncio.create_task(_to_guest(socket, stream))
    try:
        kind = None
        while kind is not Stream.EXIT:
            kind, payload = await stream.receive()
            await socket.send_bytes(bytes((kind,)) + payload)
        await socket.close()
    except BangerError as error:
        await _refuse(socket, error)
    except WebSocketDisconnect:
        pass
    finally:
        upstream.cancel()
        await asyncio.gather(upstream, return_exceptions=True)
        await stream.close()


async def _to_guest(socket: Socket, stream: ExecStream) -> None:
    try:
        while True:
            message = await socket.receive_bytes()
            if message and message[0] in _FROM_CLIENT:
                await stream.send(Stream(message[0]), message[1:])
    except (WebSocketDisconnect, BangerError):
        # the client left: closing the guest's side ends the command there
        await stream.close()


_FROM_CLIENT = frozenset({Stream.STDIN, Stream.RESIZE, Stream.SIGNAL})

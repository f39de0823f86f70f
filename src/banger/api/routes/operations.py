"""/operations"""

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar import Controller, get, post
from litestar.params import Parameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from banger.api.services import Services
from banger.model.operation import Event, Operation


class OperationRoutes(Controller):
    path = "/operations"
    tags = ("operations",)

    @get(summary="The newest operations first")
    async def list_operations(
        self, services: Services, limit: Annotated[int, Parameter(ge=1, le=1000)] = 100
    ) -> list[Operation]:
        return services.operations.all(limit)

    @get("/{ref:str}", summary="One operation, by id or unambiguous prefix")
    async def show_operation(self, ref: str, services: Services) -> Operation:
        return services.operations.find(ref)

    @get(
        "/{ref:str}/events",
        summary="Events after a sequence number: stored ones, then live ones until the end (SSE)",
    )
    async def operation_events(
        self, ref: str, services: Services, after: Annotated[int, Parameter(ge=0)] = 0
    ) -> ServerSentEvent:
        operation = services.operations.find(ref)
        return ServerSentEvent(_messages(services.operations.follow(operation.id, after)))

    @post("/{ref:str}/cancel", status_code=202, summary="Ask an operation to stop and take back what it did")
    async def cancel_operation(self, ref: str, services: Services) -> Operation:
        operation = services.operations.find(ref)
        services.operations.cancel(operation.id)
        return operation


async def _messages(events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEventMessage]:
    async for event in events:
        data = msgspec.json.encode(event).decode()
        yield ServerSentEventMessage(data=data, event=event.kind.value, id=str(event.seq))

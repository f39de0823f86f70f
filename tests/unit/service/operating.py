"""Operations as tests begin them: to their end, or refused before they begin."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from banger.jobs.operations import Operations
from banger.model.errors import BangerError
from banger.model.operation import Operation, OperationState

DEADLINE_S = 60.0


class Operating:
    """For benches that have `operations`."""

    operations: Operations

    def run(self, begin: Callable[[], Operation]) -> Operation:
        """Begin an operation and wait for its end."""

        async def main() -> Operation:
            async with asyncio.timeout(DEADLINE_S):
                return await self.operations.wait(begin().id)

        return asyncio.run(main())

    def done(self, begin: Callable[[], Operation]) -> Any:
        """The result of an operation that succeeds."""
        ended = self.run(begin)
        assert ended.state is OperationState.DONE, ended.error
        return ended.result

    def refused(self, begin: Callable[[], Operation], kind: type[BangerError], match: str) -> BangerError:
        """The error of one that does not even begin."""

        async def main() -> None:
            begin()

        with pytest.raises(kind, match=match) as error:
            asyncio.run(main())
        return error.value

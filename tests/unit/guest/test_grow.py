"""POST /grow, where nothing may be grown; tests/host/test_grow.py grows a real filesystem."""

import asyncio
from pathlib import Path

import pytest

from banger.guest.agent.grow import grow
from banger.guest.agent.http1 import Refused, Request
from banger.guest.agent.jsonlite import encode
from banger.model.errors import BangerError, Invalid, Unsupported
from tests.unit.guest.hybrid import guest


def refused(folder: Path, path: str, device_bytes: int = 0) -> BangerError:
    async def body() -> BangerError:
        async with asyncio.timeout(20), guest(folder) as machine:
            with pytest.raises(BangerError) as caught:
                await machine.grow(path, device_bytes=device_bytes)
            return caught.value

    return asyncio.run(body())


def test_what_is_no_ext4_on_a_disk_is_not_grown(tmp_path: Path) -> None:
    for path, said in (
        ("/proc", "/proc is no ext4 on a device"),
        (str(tmp_path), f"nothing is mounted at {tmp_path}"),
        ("/nowhere", "/nowhere: No such file"),
        ("/etc/passwd", "Not a directory"),
    ):
        error = refused(tmp_path, path)
        assert isinstance(error, Unsupported)
        assert said in error.message


@pytest.mark.parametrize("path", ["", "root", "/" + "x" * 5000, "/a\0b"])
def test_paths_that_are_none(tmp_path: Path, path: str) -> None:
    error = refused(tmp_path, path)
    assert isinstance(error, Invalid)
    assert "path is absolute" in error.message


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"path": 5},
        {"path": "/proc", "device_bytes": -1},
        {"path": "/proc", "device_bytes": True},
        {"path": "/proc", "device_bytes": 1 << 63},
        {"path": "/proc", "device_bytes": "1"},
        {"path": "/proc", "force": True},
    ],
)
def test_documents_that_are_refused(document: dict[str, object]) -> None:
    request = Request("POST", "/grow", {})
    request.body = encode(document).encode()
    with pytest.raises(Refused) as caught:
        grow(request)
    assert caught.value.status == 400

"""The machine that edits roots: its archive, its command line, and what its console says."""

import pytest

from banger.images.appliance import NO_DISK, arguments, behind, outcome
from banger.images.cpio import BLOCK
from banger.images.initramfs import pack


def test_the_archive_lies_behind_another_and_begins_where_the_kernel_looks() -> None:
    first = pack(b"box", [])
    for before in (first, first + b"\0" * 7, b"\x1f\x8b compressed"):
        whole = behind(before, b"echo hello\n", b"busybox")
        assert whole.startswith(before)
        second = whole.index(b"070701", len(before))
        assert second % BLOCK == 0
        assert set(whole[len(before) : second]) <= {0}
        assert whole.count(b"banger-edit/script\0") == whole.count(b"echo hello\n") == 1
        assert whole.rindex(b"init\0") > second
    assert behind(first, b"x", b"y") == behind(first, b"x", b"y")


def test_nothing_of_the_images_command_line_starts_another_first_process() -> None:
    words = arguments("root=/dev/vda rdinit=/evil init=/evil banger.edit=mine", "token", off="reboot").split()
    assert not [word for word in words if word.startswith(("init=", "rdinit="))]
    assert [word for word in words if word.startswith("banger.edit=")] == ["banger.edit=token"]
    assert "banger.off=reboot" in words
    assert "banger.tree=/dev/vdb" in arguments("", "t", off="poweroff", tree="/dev/vdb").split()


@pytest.mark.parametrize(
    ("console", "said", "before"),
    [
        ("one\r\n\r\nbanger-edit tok begins\r\ntwo\r\n\r\nbanger-edit tok 0\r\nreboot:\r\n", ["0"], ["two"]),
        ("one\nbanger-edit tok begins\ntwo\n", ["begins"], ["two"]),
        ("banger-edit tok 1 untrimmed\n", ["1", "untrimmed"], []),
        ("banger-edit tok nodisk\n", [NO_DISK], []),
        # a root may have files with any names, and nobody knows the token
        ("rm: banger-edit tok 0\nbanger-edit other 0\n", [], ["rm: banger-edit tok 0", "banger-edit other 0"]),
        ("", [], []),
    ],
)
def test_only_a_line_with_the_token_tells_how_it_went(console: str, said: list[str], before: list[str]) -> None:
    assert outcome(console, "tok") == (said, before)

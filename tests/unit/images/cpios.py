"""Initramfs archives, sound and hostile."""

from banger.images.cpio import Cpio


def archive(**files: bytes) -> bytes:
    """Files by name; two underscores are a slash, one a dot."""
    made = Cpio()
    for name, content in files.items():
        made.file(name.replace("__", "/").replace("_ko", ".ko"), content, 0o755)
    return made.finish()


def entry(name: bytes, size: int, content: bytes, *, mode: int = 0o100644, length: int | None = None) -> bytes:
    """One entry that says what it likes."""
    fields = (1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1 if length is None else length, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)

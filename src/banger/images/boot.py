"""The kernel's command line, as far as an image decides it."""

from banger.model.errors import Invalid

# The disk and the console; then what an emulated PC would make the kernel probe or test for nothing:
# PS/2 ports, the timer's interrupt, more serial ports, crypto self-tests. The console log stays plain text.
BOOT_ARGS = (
    "console=ttyS0 root=/dev/vda rootfstype=ext4 rw panic=-1 reboot=k loglevel=4 "
    "i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd 8250.nr_uarts=1 "
    "random.trust_cpu=on tsc=reliable no_timer_check cryptomgr.notests mitigations=off SYSTEMD_COLORS=0"
)
_ROOT, _TYPE = "root=/dev/vda", "rootfstype=ext4"
_MAX_BYTES = 1500  # the kernel takes 2047 (COMMAND_LINE_SIZE), and the VM's own words come behind these


def with_root_type(words: str) -> str:
    """The same with `rootfstype=ext4` in it, for a root that is an ext4: the kernel need not try what it could be."""
    return words if _TYPE in words.split() else f"{words} {_TYPE}".lstrip()


def checked_arguments(words: str) -> str:
    """What a person wants on the command line, with the root and its type. Raises `Invalid`."""
    if not words.isascii() or not words.isprintable():
        raise Invalid("--boot-args: a kernel's command line is printable ASCII", hint="give it as one quoted word")
    if len(words) > _MAX_BYTES:
        raise Invalid(
            f"--boot-args: {len(words)} bytes are too many", hint=f"use at most {_MAX_BYTES}; the VM's own words follow"
        )
    if not any(word.startswith("root=") for word in words.split()):
        words = f"{words} {_ROOT}"
    return with_root_type(" ".join(words.split()))

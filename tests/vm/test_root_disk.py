"""What a machine's root disk may rest on: the kernel's device mapper, tried in a guest's."""

import io
import tarfile
from pathlib import Path

import pytest

import banger
from tests.support import mapped_in_guest
from tests.support.home import Home

NO_MAPPER = 77


def test_the_kernels_device_mapper_does_what_is_asked_of_it(home: Home, booted: str) -> None:
    """The tests' hosts may have none: the code that talks to it is run in a guest, whose kernel has one."""
    source = Path(banger.__file__).parent
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in source.rglob("*.py"):
            archive.add(path, f"banger/{path.relative_to(source)}")
        archive.add(mapped_in_guest.__file__, "mapped_in_guest.py")
    modules = ["modprobe", "--all", "loop", "dm-mod", "dm-snapshot", "dm-zero"]
    if home.run("vm", "exec", booted, "--", *modules, status=None).returncode != 0:
        pytest.skip("the guest's kernel has no device mapper")
    try:
        home.run("vm", "exec", booted, "--", "mkdir", "/var/tmp/mapped")
        home.run("vm", "exec", "-i", booted, "--", "tar", "x", "-C", "/var/tmp/mapped", input=packed.getvalue())
        script = "cd /var/tmp/mapped && PYTHONPATH=. exec python3 mapped_in_guest.py /var/tmp/mapped/here"
        done = home.run("vm", "exec", booted, "--", "sh", "-c", script, status=None)
        if done.returncode == NO_MAPPER:
            pytest.skip("the guest's kernel has no device mapper that can be used")
        assert (done.returncode, done.stdout.decode().strip()) == (0, "all of it"), done.stderr.decode()
    finally:
        clean = "umount /var/tmp/mapped/here/small; rm -rf /var/tmp/mapped"
        home.run("vm", "exec", booted, "--", "sh", "-c", clean, status=None)

"""What each engine can do, by its version. Pure: a table of facts and two functions that read it."""

import re

from banger.model.engine import Capabilities
from banger.model.errors import Invalid

# (major, minor, patch, 1), the last 0 for what comes before the release, like 1.17.0-dev
Version = tuple[int, int, int, int]

_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})([-+_][0-9A-Za-z.+_-]{1,40})?")

# 1.8.0 is the first release that describes virtio devices by ACPI, which the kernels of distributions need
# (firecracker #4428)
ACPI_SINCE: Version = (1, 8, 0, 1)
OLDEST = ACPI_SINCE
# A bare pause and resume closes the gate in front of the guest's receive queue, and nothing opens it again: new
# connections from the host hang. The gate came with 1.16.0 (#5882); what opens it (#6100) is on the way to 1.17.0.
PAUSE_HANG: tuple[Version, Version] = ((1, 16, 0, 0), (1, 17, 0, 1))
# the release of the API that banger-vmm honours
QEMU_API = "1.17.0-dev"


def parse_version(text: str) -> Version:
    """`1.15.1`, `v1.15.1` or `1.17.0-dev` as numbers that compare as the releases do. Raises `Invalid`."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise Invalid(f"{text!r} is not a version of Firecracker", hint="versions look like 1.15.1")
    before = (match[4] or "").startswith("-")
    return int(match[1]), int(match[2]), int(match[3]), 0 if before else 1


def new_enough(version: str) -> bool:
    """Whether banger can use this release of Firecracker. Raises `Invalid` when it is not a version."""
    return parse_version(version) >= OLDEST


def oldest() -> str:
    """The oldest release of Firecracker that banger can use."""
    return ".".join(str(number) for number in OLDEST[:3])


def firecracker_capabilities(version: str) -> Capabilities:
    """What this release of Firecracker can do. Raises `Invalid` when it is not a version."""
    number = parse_version(version)
    first, fixed = PAUSE_HANG
    return Capabilities(
        api_version=version.removeprefix("v"),
        needs_kvm=True,
        user_network=False,
        qcow2=False,
        jailer=True,
        acpi=number >= ACPI_SINCE,
        power_off=False,
        vsock_pause_hang=first <= number < fixed,
        stops_when_full=False,
    )


def capabilities_of(engine: str, version: str) -> Capabilities:
    """What the engine of a stored VM can do."""
    return firecracker_capabilities(version) if engine == "firecracker" else qemu_capabilities(version)


def qemu_capabilities(version: str) -> Capabilities:
    """What banger-vmm can do; today the same with every version of QEMU that it starts on."""
    return Capabilities(
        api_version=QEMU_API,
        needs_kvm=False,
        user_network=True,
        qcow2=True,
        jailer=False,
        acpi=True,
        power_off=True,
        vsock_pause_hang=False,
        stops_when_full=True,
    )

"""The `user` backend: QEMU's own user networking, which needs no privilege.

Every guest has a network of its own (10.0.2.0/24), so guests never meet. Closed, it answers only its own
gateway and resolver addresses; with NAT, connections leave as the person who runs banger.
"""

import hashlib

from banger.model.machine import Nic

_ADDRESS, _PREFIX, _GATEWAY, _DNS = "10.0.2.15", 24, "10.0.2.2", "10.0.2.3"


def mac_address(vm_id: str) -> str:
    """A locally administered unicast address that is always the same for one VM (IEEE 802, bit 1 of octet 0)."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def user_nic(vm_id: str, *, nat: bool) -> Nic:
    """The network card of a VM on this backend."""
    return Nic(
        id="eth0",
        host_device="user:nat" if nat else "user:closed",
        mac=mac_address(vm_id),
        address=_ADDRESS,
        prefix=_PREFIX,
        gateway=_GATEWAY,
        dns=(_DNS,),
    )

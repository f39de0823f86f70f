"""What earlier versions of banger wrote into image.json, in today's words.

Nothing on the disk is changed here: image.json is written anew, in the present format, when a part is replaced or the
image gets another name, and is replaced by a rename then.
"""

from collections.abc import Mapping
from typing import Any

from banger.model.bundle import AGENT, LEGACY_AGENT
from banger.model.image import WORK_SEED, ImagePart

FIRST_FORMAT = 1  # also that of an image.json which names none
# what a part was called before -> its role now
ROLES = {
    LEGACY_AGENT: AGENT,
    "ping-helper": AGENT,
    "ping_helper": AGENT,
    "vsock_ping_helper": AGENT,
    "rootfs": "root",
    "initrd": "initramfs",
    "work_seed": WORK_SEED,
}
FIELDS = {"fingerprint": "seed_key", "seeded_ssh_public_key_fingerprint": "seed_key"}
# for what was not always told
_UNTOLD: dict[str, Any] = {
    "release": "",
    "kernel_release": "",
    "packages": 0,
    "created_at": "",
    "origin": "",
    "needs_acpi": True,
}


def upgrade(document: Any) -> Any:
    """The decoded image.json of the first format as one of today's; any other document as it is.

    Where something stands under its older and today's name, today's counts. The format stays what it was.
    """
    if not isinstance(document, dict) or document.setdefault("format", FIRST_FORMAT) != FIRST_FORMAT:
        return document
    found = _UNTOLD | _renamed(document, FIELDS)
    if isinstance(parts := found.get("parts"), dict):
        found["parts"] = {role: _part(part) for role, part in _renamed(parts, ROLES).items()}
    return found


def _renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        today = names.get(name, name)
        if today == name or today not in given:
            found[today] = value
    return found


def _part(part: Any) -> Any:
    """Without keys that nobody knows any more; a part of today may have none of those."""
    if not isinstance(part, dict):
        return part
    return {key: value for key, value in part.items() if key in ImagePart.__struct_fields__}

"""Volumes: work disks that belong to no VM."""

import msgspec

VOLUME_FORMAT = 1


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """The content of volume.json.

    image       name of the image of the VM that it was the work disk of
    vm          that VM's name
    created_at  RFC 3339, UTC: when it became a volume
    """

    name: str
    image: str
    vm: str
    created_at: str
    format: int = VOLUME_FORMAT


class AttachSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /volumes/NAME/attach`: the VM's name, id, or the beginning of its id."""

    vm: str

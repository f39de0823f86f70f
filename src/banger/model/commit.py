"""The body of `POST /images/commit`."""

import msgspec


class CommitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A VM whose root becomes an image.

    vm              the VM's name or id
    name            of the new image
    with_work_disk  what is in the VM's /root becomes the home of the image's machines; else that is the one of the
                    image that the VM was made of
    """

    vm: str
    name: str
    with_work_disk: bool = False

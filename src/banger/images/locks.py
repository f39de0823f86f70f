"""Which images machines use: each holds a shared lock on its image's root file; who deletes the image, the only one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from banger.model.errors import Conflict, NotFound
from banger.system.locks import lock_existing


@contextlib.contextmanager
def image_in_use(root: Path, name: str = "") -> Iterator[int]:
    """Keep an image from being deleted; its root file's descriptor, for an engine to inherit and hold until it ends.

    `name` is the image's, where the root file does not lie in its directory. Raises `NotFound`, or `Conflict` while the
    image is being deleted.
    """
    descriptor = _share(root, name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def image_alone(root: Path, name: str) -> Iterator[None]:
    """Keep others from using an image. Raises `Conflict` when one does; one without a root disk is used by none."""
    try:
        descriptor = lock_existing(root, shared=False)
    except OSError:
        yield
        return
    if descriptor is None:
        raise Conflict(
            f"the image {name} is in use, by VMs that run or by what is being made of it",
            hint="`banger vm list` and `banger operation list` show what there is; stop it, or wait for its end",
        )
    try:
        yield
    finally:
        os.close(descriptor)


class ImageLocks:
    """Locks that the daemon holds for engines that cannot: jailed ones inherit no descriptors.

    They end with the daemon, and are taken again when it adopts the engines.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def acquire(self, vm_id: str, root: Path, name: str = "") -> None:
        """Hold a lock for this VM, in place of one that it had. Raises as `image_in_use`."""
        descriptor = _share(root, name)
        self.release(vm_id)
        self._held[vm_id] = descriptor

    def release(self, vm_id: str) -> None:
        """Let go of the VM's lock; without one, there is nothing to do."""
        descriptor = self._held.pop(vm_id, None)
        if descriptor is not None:
            os.close(descriptor)


def _share(root: Path, name: str) -> int:
    name = name or root.parent.name
    try:
        descriptor = lock_existing(root, shared=True)
    except FileNotFoundError as error:
        raise NotFound(
            f"the image {name} has no root disk", hint="`banger image list` shows which there are"
        ) from error
    if descriptor is None:
        raise Conflict(f"the image {name} is being deleted", hint="use another: `banger image list` shows them")
    return descriptor

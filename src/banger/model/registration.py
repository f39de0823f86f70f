"""Registering files as an image, and promoting such an image: what is asked."""

import msgspec

from banger.model.errors import Invalid
from banger.model.names import validate_name

_FILES = ("rootfs", "kernel", "initramfs", "modules", "packages", "kernel_config")
_WORDS = ("boot_args", "distro", "release")


class RegisterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /images/register`: absolute paths of files on the daemon's host.

    Without any, the files of the registered image of that name are looked at again. `modules` is a directory. None is
    what was not given. `replace`: an image of that name may become another one.
    """

    name: str
    rootfs: str | None = None
    kernel: str | None = None
    initramfs: str | None = None
    modules: str | None = None
    packages: str | None = None
    kernel_config: str | None = None
    boot_args: str | None = None
    distro: str | None = None
    release: str | None = None
    replace: bool = False

    @property
    def again(self) -> bool:
        """Whether only a name was given."""
        return all(getattr(self, field) is None for field in (*_FILES, *_WORDS))

    def check(self) -> None:
        """Raise `Invalid` for a name that cannot be, a path that is relative, or files without a root or kernel."""
        validate_name(self.name, "image name")
        if self.again:
            return
        for field in _FILES:
            path = getattr(self, field)
            if path is not None and (not path.startswith("/") or "\0" in path):
                raise Invalid(f"{field}: {path!r} is not an absolute path")
        for field in ("rootfs", "kernel"):
            if getattr(self, field) is None:
                raise Invalid(
                    f"no {field} was given", hint=f"an image needs --rootfs and --kernel; --{field} is missing"
                )


class PromoteSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /images/{name}/promote`; `new` names the managed image, None: it keeps its name."""

    new: str | None = None

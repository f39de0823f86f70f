"""Looking at the files that somebody registers as an image, which may be anything: whether machines can boot of them.

Nothing of theirs is changed or copied. What has to be made of them, such as a kernel that is not compressed, is written
to the new image's directory.
"""

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from banger.images.initramfs import renew_init
from banger.images.initrd import MAX_FILE, read_initramfs
from banger.images.kconfig import missing_drivers
from banger.images.kernel import BadKernel
from banger.images.kernel_facts import BootKernel, Configured, find_config, read_kernel, read_small
from banger.images.module_files import (
    DEPENDENCIES,
    ReadModule,
    directory_reader,
    has_modules,
    make_initramfs,
)
from banger.images.package_list import read_package_list
from banger.images.root_file import check_root_file, read_os_release
from banger.images.root_tree import RootTree
from banger.model.errors import Invalid
from banger.model.image import INIT_VERSION
from banger.paths import ImagePaths
from banger.system.ext4 import Unreadable

Told = Callable[[int], None]
_AGENT, _OPENCODE = "/usr/lib/banger/banger/guest/agent/__main__.py", "/usr/local/bin/opencode"


@dataclass(frozen=True)
class Given:
    """What a person named; all of it is there. `modules` is a directory."""

    root: Path
    kernel: Path
    initramfs: Path | None = None
    modules: Path | None = None
    packages: Path | None = None
    kernel_config: Path | None = None


@dataclass
class Inspected:
    """What was found.

    elsewhere  role -> file of the person's
    made       role -> file in the new image's directory
    notes      what a person should know
    modules    the directory that was given, where the root has no modules for the kernel
    """

    elsewhere: dict[str, Path]
    made: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    distro: str = ""
    release: str = ""
    kernel_release: str = ""
    needs_acpi: bool = True
    has_opencode: bool = False
    init_version: int = INIT_VERSION
    packages: int = 0
    modules: Path | None = None


def existing(path: str, what: str, *, directory: bool = False) -> Path:
    """The real file that a path leads to. Raises `Invalid` when there is none."""
    try:
        real = Path(path).resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise Invalid(f"--{what}: {path}: {getattr(error, 'strerror', None) or 'a loop of links'}") from error
    if not (stat.S_ISDIR(mode) if directory else stat.S_ISREG(mode)):
        raise Invalid(f"--{what}: {path} is no {'directory' if directory else 'regular file'}")
    if not os.access(real, os.R_OK):
        raise Invalid(f"--{what}: the daemon may not read {real}", hint="let the person who runs it read it")
    return real


def inspect(given: Given, out: ImagePaths, scratch: Path, told: Told) -> Inspected:
    """Check everything. Blocks; what `told` raises ends it. `scratch` is a directory for what lies on disk meanwhile.

    Raises `Invalid` (`BadKernel`, `BadInitramfs`) naming what is wrong, `HostRequirement`, `OSError`.
    """
    found = Inspected(elsewhere={"root": given.root})
    check_root_file(given.root)
    kernel = read_kernel(given.kernel)
    told(given.kernel.stat().st_size)
    found.kernel_release = kernel.release
    _place_kernel(found, given, kernel, out)
    with ExitStack() as stack:
        root = _look_into_root(found, given.root, stack)
        modules = _modules(found, given, kernel, root)
        config = find_config(
            kernel, given.kernel_config, given.kernel.parent, root.read if root else lambda name, limit: None, modules
        )
        found.needs_acpi = config.config.needs_acpi
        found.notes.append(f"kernel {kernel.release or 'of an unknown release'}; its configuration: {config.source}")
        names = _initramfs(found, given, modules, out, scratch, told)
    _pass_gate(kernel, config, names, given)
    if config.text:
        found.made["config"] = out.directory / "kernel.config"
        found.made["config"].write_bytes(config.text)
    if given.packages is not None:
        found.made["manifest"] = out.manifest
        found.packages = read_package_list(given.packages, out.manifest)
    return found


def _place_kernel(found: Inspected, given: Given, kernel: BootKernel, out: ImagePaths) -> None:
    if kernel.compressed:
        found.elsewhere["bzimage"] = given.kernel
        found.made["kernel"] = out.kernel
        out.kernel.write_bytes(kernel.vmlinux)
    else:
        found.elsewhere["kernel"] = given.kernel


def _look_into_root(found: Inspected, path: Path, stack: ExitStack) -> RootTree | None:
    try:
        root = stack.enter_context(RootTree(path))
        found.distro, found.release = read_os_release(root)
        found.has_opencode = root.has(_OPENCODE)
        if not root.has(_AGENT):
            found.notes.append(
                f"banger's agent is not in this root (there is no {_AGENT}): machines of this image boot, and "
                "`banger vm create` will wait in vain for one to become healthy"
            )
        return root
    except Unreadable as error:
        found.notes.append(f"what is in the root was not looked at: {error.message}")
        return None


def _modules(found: Inspected, given: Given, kernel: BootKernel, root: RootTree | None) -> ReadModule | None:
    """Where the kernel's modules are read from; None where there are none."""
    inside = _modules_in(root, kernel.release) if root and kernel.release else None
    without = root is not None and inside is None
    if without:
        found.notes.append("the root has no modules for this kernel: only what is built in, or in the initramfs, works")
    if given.modules is None:
        return inside
    places = [given.modules, given.modules / "lib/modules" / kernel.release, given.modules / kernel.release]
    for place in places if kernel.release else places[:1]:
        if has_modules(directory_reader(place)):
            if without:
                found.modules = place
                found.notes.append(
                    "those of --modules are kept, for images that `banger image build` makes of this one"
                )
            return directory_reader(place)
    raise Invalid(
        f"--modules: {given.modules} has no {DEPENDENCIES}",
        hint=f"name the directory lib/modules/{kernel.release or 'RELEASE'}, after depmod",
    )


def _modules_in(root: RootTree, release: str) -> ReadModule | None:
    def read(name: str, limit: int) -> bytes | None:
        return root.read(f"/lib/modules/{release}/{name}", limit)

    return read if has_modules(read) else None


def _initramfs(
    found: Inspected, given: Given, modules: ReadModule | None, out: ImagePaths, scratch: Path, told: Told
) -> frozenset[str]:
    """The modules in the initramfs that was given, or in the one that is made."""
    if given.initramfs is None:
        content, names = make_initramfs(modules, scratch / "modules")
        _make_initramfs(found, content, out)
        found.notes.append(f"the initramfs is banger's, with the modules: {', '.join(names) or 'none'}")
        return frozenset(names)
    archive = read_initramfs(given.initramfs, told)
    if archive.init_version == 0:
        found.notes.append("the initramfs is not banger's: machines of this image get no work disk")
    if 0 < archive.init_version < INIT_VERSION:
        _make_initramfs(found, renew_init(read_small(given.initramfs, MAX_FILE, "initramfs")), out)
        found.notes.append("the initramfs is of an older banger: it gets today's first process, in a copy")
    else:
        found.elsewhere["initramfs"] = given.initramfs
        found.init_version = archive.init_version
    return archive.modules


def _make_initramfs(found: Inspected, content: bytes, out: ImagePaths) -> None:
    found.made["initramfs"] = out.initramfs
    out.initramfs.write_bytes(content)


def _pass_gate(kernel: BootKernel, config: Configured, names: frozenset[str], given: Given) -> None:
    if missing := missing_drivers(config.config, names):
        hint = "give --modules, the directory lib/modules/RELEASE of this kernel, or an --initramfs with the drivers"
        if given.initramfs is not None:
            hint = "leave --initramfs out, and banger makes one of --modules or of the root's own modules"
        raise BadKernel(
            f"the kernel {kernel.release or given.kernel.name} lacks {', '.join(missing)}, built in or in its "
            f"initramfs; asked was {config.source}",
            hint=hint,
        )

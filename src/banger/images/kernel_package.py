"""A Debian kernel package unpacked, not installed: modules into the root, boot files beside it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from banger.images.initramfs import build_initramfs
from banger.images.kconfig import KernelConfig, missing_drivers
from banger.images.kernel import BadKernel, extract_vmlinux, pvh_entry
from banger.paths import ImagePaths
from banger.system.files import in_thread
from banger.system.process import find_program, run


@dataclass(frozen=True)
class KernelPackage:
    """What was installed: the kernel's release and configuration, the package's name, version and arch."""

    release: str
    config: KernelConfig
    package: dict[str, str]


async def install_kernel(source: Path, root: Path, out: ImagePaths) -> KernelPackage:
    """Take the one .deb in `source`: its modules go to the root, vmlinux, bzImage, config and initramfs to `out`.

    Raises `BadKernel` for a kernel that cannot reach its root disk or cannot be started by PVH.
    """
    package = _only(source.glob("*.deb"), "kernel package")
    tree = source / "tree"
    dpkg = find_program("dpkg-deb", package="dpkg")
    await run([dpkg, "-x", str(package), str(tree)], timeout=120)
    fields = "--showformat=${Package} ${Version} ${Architecture}"
    shown = await run([dpkg, "--show", fields, str(package)], timeout=30)
    name, version, arch = shown.stdout.decode().split()
    release = _only((tree / "boot").glob("vmlinuz-*"), "kernel").name.removeprefix("vmlinuz-")
    modules = root / "usr/lib/modules" / release
    modules.parent.mkdir(parents=True, exist_ok=True)
    (tree / "lib/modules" / release).rename(modules)
    await run([find_program("depmod", package="kmod"), "-b", str(root), release], timeout=120)
    config = await in_thread(_write_boot_files, tree / "boot", release, modules, out)
    (root / "boot" / f"config-{release}").write_bytes(out.config.read_bytes())
    return KernelPackage(release, config, {"name": name, "version": version, "arch": arch})


def _only(found: Iterable[Path], what: str) -> Path:
    paths = list(found)
    if len(paths) != 1:
        raise BadKernel(f"there are {len(paths)} files instead of one {what}", hint="try another mirror")
    return paths[0]


def _write_boot_files(boot: Path, release: str, modules: Path, out: ImagePaths) -> KernelConfig:
    (boot / f"config-{release}").rename(out.config)
    (boot / f"vmlinuz-{release}").rename(out.bzimage)
    config = KernelConfig.parse(out.config.read_text())
    vmlinux = extract_vmlinux(out.bzimage.read_bytes())
    if pvh_entry(vmlinux) is None:
        raise BadKernel(f"the kernel {release} has no PVH entry", hint="use a kernel with CONFIG_PVH=y")
    out.kernel.write_bytes(vmlinux)
    initramfs, resolved = build_initramfs(modules)
    if missing := missing_drivers(config, resolved.names):
        raise BadKernel(
            f"the kernel {release} lacks {', '.join(missing)}", hint="use a kernel made for virtual machines"
        )
    out.initramfs.write_bytes(initramfs)
    return config

"""A Debian 12 image, from packages to a directory that machines boot from."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from banger.images import opencode
from banger.images.apt_sources import host_sources, mirror_source
from banger.images.baseline import baseline
from banger.images.boot import BOOT_ARGS
from banger.images.catalog import check_free, publish, workspace
from banger.images.confine import require_root, run_confined
from banger.images.draft import Draft, describe
from banger.images.kernel_package import KernelPackage, install_kernel
from banger.images.manifest import in_order, write_manifest
from banger.images.mmdebstrap import Recipe, install
from banger.images.package_cache import PackageCache, PackageLists
from banger.images.rootfs import Seed, check_root, clean, installed_packages, plant
from banger.images.work_seed import make_work_seed
from banger.model.errors import HostRequirement, Invalid
from banger.model.image import INIT_VERSION, Image
from banger.model.progress import Progress
from banger.paths import ImagePaths, Paths
from banger.system.ext4 import check_ext4, make_ext4
from banger.system.files import in_thread, path_in_root
from banger.system.process import find_program

SUITE, RELEASE = "bookworm", "12"
ROOT_BYTES = 4 * 1024**3
KERNELS = ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64")
PACKAGES = (
    "systemd-sysv",
    "udev",
    "dbus",
    "openssh-server",
    "python3",
    "iproute2",
    "ca-certificates",
    "bash",
    "procps",
    "kmod",
)
PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "dpkg-deb": "dpkg",
            "depmod": "kmod", "chroot": "coreutils", "unshare": "util-linux", "setpriv": "util-linux"}  # fmt: skip
MEMORY_MIB = 128  # measured: the least with which a machine of this image gets healthy
# what the baseline calls otherwise than people do: the link, and what it leads to where that is there
_ALIASES = {"/usr/local/bin/fd": "/usr/bin/fdfind"}
_FREE_BYTES = 3 * 1024**3
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


@dataclass(frozen=True)
class DebianRequest:
    """What to make; `root_bytes` is the root disk's size.

    `mirror` None means the host's own mirrors when it runs the same Debian, else mmdebstrap's default. `minimal` is
    without the dev baseline. `opencode` is installed if asked for, from `npm_registry` or where this host gets npm
    packages; its service is the seed's. `seed_key` is the fingerprint of the SSH key that the seed puts into root's
    home, empty when it puts none. `offline`: what the cache has must do, and nobody is asked.
    """

    name: str
    seed: Seed
    seed_key: str = ""
    mirror: str | None = None
    root_bytes: int = ROOT_BYTES
    extra_packages: tuple[str, ...] = ()
    minimal: bool = False
    opencode: bool = False
    npm_registry: str | None = None
    offline: bool = False


def package_cache(paths: Paths) -> PackageCache:
    """Where downloaded packages and package lists are kept between runs."""
    return PackageCache(paths.cache / "debian" / SUITE)


async def bootstrap(paths: Paths, request: DebianRequest, progress: Progress) -> Image:
    """Make and publish the image. After a failure or a cancellation nothing is left but the package cache.

    Raises `HostRequirement` (not root, programs, space, no npm registry, an empty cache), `Conflict` (a name),
    `CommandFailed`, `Timeout`, `Invalid` (a bad mirror, registry, seed, kernel or package).
    """
    recipe = recipe_of(request)
    _check_host(paths, request)
    # before the packages, which take a minute, as it may find that nobody knows a registry
    program = await _locate_opencode(paths, request)
    async with workspace(paths) as work:
        root, out = work / "root", ImagePaths(work / "image")
        out.directory.mkdir(mode=0o700)
        async with progress.stage("packages", deadline_s=1800):
            cache = package_cache(paths)
            lists = await install(recipe, root, work / "kernel", cache, progress, offline=request.offline)
        if program is not None:
            async with progress.stage("opencode", deadline_s=opencode.DOWNLOAD_S):
                await opencode.fetch(program, progress)
                await in_thread(opencode.install, program.file, root)
        async with progress.stage("kernel", deadline_s=180):
            kernel = await install_kernel(work / "kernel", root, out)
            progress.note(f"kernel {kernel.release}")
        async with progress.stage("seed", deadline_s=180):
            others = [kernel.package, *([program.build.manifest] if program else [])]
            packages = await _seed(root, request.seed, others, out)
        async with progress.stage("filesystem", deadline_s=600):
            await make_ext4(out.root, request.root_bytes, label="banger-root", tree=root)
        async with progress.stage("work seed", deadline_s=120):
            await make_work_seed(root / "root", out.work_seed)
        async with progress.stage("verify", deadline_s=600):
            await check_ext4(out.root)
            await check_ext4(out.work_seed)
        async with progress.stage("publish", deadline_s=300):
            image = await in_thread(_describe, request, _origin(recipe, lists), kernel, out, packages)
            await in_thread(publish, paths, image, out.directory)
    return image


def _check_host(paths: Paths, request: DebianRequest) -> None:
    check_free(paths, request.name)
    require_root()
    for program, package in PROGRAMS.items():
        find_program(program, package=package)
    paths.images.mkdir(parents=True, mode=0o700, exist_ok=True)
    if (free := shutil.disk_usage(paths.images).free) < _FREE_BYTES:
        raise HostRequirement(
            f"{paths.images} has {free // 2**20} MiB free", hint=f"an image needs {_FREE_BYTES // 2**20} MiB"
        )


def recipe_of(request: DebianRequest) -> Recipe:
    """What mmdebstrap shall install. Raises `Invalid` (a package, the mirror)."""
    for package in request.extra_packages:
        if not _PACKAGE_NAME.fullmatch(package):
            raise Invalid(f"{package!r} is not a package name", hint="give Debian package names, such as git")
    sources = mirror_source(request.mirror, SUITE) if request.mirror else host_sources(SUITE)
    wanted = [*PACKAGES, *(() if request.minimal else baseline("debian")), *request.extra_packages]
    return Recipe(SUITE, sources, list(dict.fromkeys(wanted)), KERNELS)


async def _locate_opencode(paths: Paths, request: DebianRequest) -> opencode.Package | None:
    if not request.opencode:
        return None
    build = opencode.BUILDS["glibc"]
    return await opencode.locate(build, paths.downloads, request.npm_registry, offline=request.offline)


async def _seed(root: Path, seed: Seed, others: Sequence[Mapping[str, str]], out: ImagePaths) -> int:
    """Clean and seed the root, compile, check, and write the manifest; how many packages it lists.

    `others` are packages that dpkg does not know of.
    """
    await in_thread(clean, root)
    await in_thread(plant, root, _with_aliases(root, seed))
    if seed.compile_dirs:
        chroot = find_program("chroot", package="coreutils")
        python = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "timestamp"]
        await run_confined([chroot, str(root), *python, *seed.compile_dirs], timeout=120, on_line=lambda _: None)
    check_root(root)
    packages = in_order([*installed_packages(root), *map(dict, others)])
    write_manifest(out.manifest, packages)
    return len(packages)


def _with_aliases(root: Path, seed: Seed) -> Seed:
    found = {link: target for link, target in _ALIASES.items() if path_in_root(root, target).exists()}
    return replace(seed, symlinks=found | dict(seed.symlinks))


def _origin(recipe: Recipe, lists: PackageLists | None) -> str:
    sources = "; ".join(recipe.sources) or f"mmdebstrap {recipe.suite}"
    return f"{sources}; package lists of {lists.day}" if lists is not None else sources


def _describe(request: DebianRequest, origin: str, kernel: KernelPackage, out: ImagePaths, packages: int) -> Image:
    image = Image(
        name=request.name,
        distro="debian",
        release=RELEASE,
        kernel_release=kernel.release,
        boot_args=BOOT_ARGS,
        parts={},
        packages=0,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=origin,
        needs_acpi=kernel.config.needs_acpi,
        has_opencode=request.opencode,
        init_version=INIT_VERSION,
        memory_mib=MEMORY_MIB,
    )
    return describe(Draft(out.directory, image), packages=packages, seed_key=request.seed_key)

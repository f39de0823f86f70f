"""A Debian root tree made by mmdebstrap, with the downloaded packages kept for the next time."""

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from banger.images.confine import run_confined
from banger.images.package_cache import PackageCache, PackageLists
from banger.images.rootfs import installed_packages
from banger.model.errors import CommandFailed, HostRequirement
from banger.model.progress import Progress
from banger.system.files import in_thread, remove_tree
from banger.system.process import find_program

DEADLINE_S = 1800.0
# For dpkg, here and in the guest: no documents that nobody reads in a disposable machine, no fsync per file.
# As a file and not as --dpkgopt, for which mmdebstrap would start a filter per package: 14 s in all.
_DPKG_FILE = "etc/dpkg/dpkg.cfg.d/banger"
_DPKG = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/linda/*",
)
# without a network each try would only wait
_OFFLINE_FILE = "etc/apt/apt.conf.d/00offline"
_OFFLINE = ('Acquire::Retries "0";',)
_APT = ('Acquire::Languages "none"', 'APT::Install-Recommends "false"')
_FETCHED = re.compile(r"^Get:(\d+) ")
_CONFIGURED = re.compile(r"^Setting up (\S+)")
_FAILED = re.compile(r"^E: Failed to fetch (\S+)\s+(.*)$")
_UNREACHABLE = re.compile(
    r"Temporary failure resolving|Could not resolve|Something wicked happened resolving|Could not connect"
    r"|Cannot initiate the connection|Unable to connect|Connection (?:failed|timed out|refused|reset)"
    r"|Network is unreachable|No route to host|^50[234] "
)
_STEP = re.compile(r"^I: ((?:running apt-get|downloading|extracting|installing) .+)$")


@dataclass(frozen=True)
class Recipe:
    """What is installed: the suite, apt's one-line sources (none: mmdebstrap's default), packages, kernel metas."""

    suite: str
    sources: Sequence[str]
    packages: Sequence[str]
    kernels: Sequence[str]


def command(recipe: Recipe, root: Path, kernel_out: Path, hook: Path, *, offline: bool = False) -> list[str]:
    """The argv; `kernel_out` receives the kernel's .deb. `offline`: with the lists that are in the root."""
    call = ["sh", str(hook)]
    words = [shlex.join(call), '"$1"', shlex.join([str(kernel_out), *recipe.kernels])]
    argv = [find_program("mmdebstrap", package="mmdebstrap"), "--verbose", "--mode=root", "--format=directory"]
    argv += ["--variant=minbase", f"--include={','.join(recipe.packages)}"]
    # archives and lists are taken to the cache afterwards, by us
    argv += [f"--skip=check/empty,essential/unlink,cleanup/apt{',update' if offline else ''}"]
    argv += [f"--aptopt={option}" for option in _APT]
    argv += [f"--customize-hook={' '.join(words)}", recipe.suite, str(root), *recipe.sources]
    return argv


class _Reporter:
    """Turns the output of apt and dpkg into progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._configured = 0

    def line(self, line: str) -> None:
        if match := _STEP.match(line):
            self._progress.note(match[1])
        elif match := _FETCHED.match(line):
            self._progress.progress(int(match[1]), None, "downloads")
        elif _CONFIGURED.match(line):
            self._configured += 1
            self._progress.progress(self._configured, None, "packages")


async def install(
    recipe: Recipe, root: Path, kernel_out: Path, cache: PackageCache, progress: Progress, *, offline: bool = False
) -> PackageLists | None:
    """Make `root` and put the kernel's .deb in `kernel_out`; both are created. The caller removes them on failure.

    The cache's lists serve when the mirror cannot be reached, and when nobody shall try (`offline`); they are
    returned then. Raises `CommandFailed` with the last lines of output, `HostRequirement` (no such lists), `Timeout`.
    """
    lists = await cache.lists(recipe.sources)
    if not offline:
        try:
            await _attempt(recipe, root, kernel_out, cache, lists, progress)
            return None
        except CommandFailed as error:
            if lists is None or not mirror_unreachable(_output(error)):
                raise _explain(error) from error
        progress.note(f"the mirror cannot be reached: using the package lists of {lists.day} from the cache")
        await remove_tree(root)
        await remove_tree(kernel_out)
    elif lists is None:
        raise HostRequirement(
            "the cache has no package lists of this mirror", hint="do it once without --offline, with a network"
        )
    else:
        progress.note(f"using the package lists of {lists.day} from the cache")
    if lists.expired:
        progress.note(f"they expired on {lists.expired}: the mirror may have had security updates since")
    try:
        await _attempt(recipe, root, kernel_out, cache, lists, progress, offline=True)
    except CommandFailed as error:
        raise _missing(error) from error
    return lists


async def _attempt(
    recipe: Recipe,
    root: Path,
    kernel_out: Path,
    cache: PackageCache,
    lists: PackageLists | None,
    progress: Progress,
    *,
    offline: bool = False,
) -> None:
    """Once, with the mirror or without any network."""
    kernel_out.mkdir()
    await in_thread(_begin, root, offline)
    filled = await cache.fill(root, lists)
    with as_file(files("banger.images").joinpath("files/kernel-hook.sh")) as hook:
        argv = command(recipe, root, kernel_out, hook, offline=offline)
        await run_confined(argv, timeout=DEADLINE_S, on_line=_Reporter(progress).line, network=not offline)
    (root / _OFFLINE_FILE).unlink(missing_ok=True)
    needed = {archive_name(package) for package in await in_thread(installed_packages, root)}
    kernel = list(kernel_out.glob("*.deb"))
    sources = None if offline else recipe.sources
    await cache.keep(root, kernel, sources, filled - needed - {package.name for package in kernel})
    await in_thread(drop_documents, root)


def archive_name(package: Mapping[str, str]) -> str:
    """What apt calls a package's file: colons of epochs, and underscores, are written as in URLs."""
    words = (package["name"], package["version"], package["arch"])
    return "_".join(word.replace(":", "%3a").replace("_", "%5f") for word in words) + ".deb"


def _output(error: CommandFailed) -> list[str]:
    return str(error.details.get("stderr", "")).splitlines()


def mirror_unreachable(lines: Sequence[str]) -> bool:
    """Whether the lists could not be fetched, all for the one reason that nobody answered.

    A mirror that answers, but with a bad signature or without the suite, is not to be passed over.
    """
    failed = [match for line in lines if (match := _FAILED.match(line))]
    return bool(failed) and all(
        match[1].endswith("Release") and _UNREACHABLE.search(match[2]) is not None for match in failed
    )


def _missing(error: CommandFailed) -> CommandFailed:
    """The same error of a bootstrap without a mirror: which packages the cache has not."""
    failed = [match[1].rpartition("/")[2] for line in _output(error) if (match := _FAILED.match(line))]
    if not failed:
        return _explain(error)
    others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return CommandFailed(
        f"the cache has not all packages: {failed[0]}{others} would have to be fetched",
        hint="do it once with a network; the cache then has what this image needs",
        details=error.details,
    )


def _explain(error: CommandFailed) -> CommandFailed:
    """The same error with its first true error line, and with the step that helps when a mirror is the cause."""
    lines = _output(error)
    causes = [line[3:] for line in lines if line.startswith("E: ") and "mmdebstrap" not in line]
    text = " ".join(lines)
    unreachable = "Failed to fetch" in text or "Could not resolve" in text or "Unable to locate" in text
    hint = "check the network, or name another mirror with --mirror" if unreachable else error.hint
    return CommandFailed(
        f"mmdebstrap failed: {causes[0]}" if causes else error.message, hint=hint, details=error.details
    )


def _begin(root: Path, offline: bool) -> None:
    """Begin the root: the settings of dpkg, and of an apt that has no network."""
    root.mkdir()
    root.chmod(0o755)
    settings = {_DPKG_FILE: _DPKG} | ({_OFFLINE_FILE: _OFFLINE} if offline else {})
    for name, lines in settings.items():
        file = root / name
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"{line}\n" for line in lines))


def drop_documents(root: Path) -> None:
    """Remove what the essential packages brought before dpkg's settings counted; licences stay."""
    share = root / "usr/share"
    for name in ("man", "info", "lintian", "linda"):
        for entry in (share / name).glob("*"):
            _remove(entry)
    for entry in (share / "locale").glob("*"):
        if entry.name != "locale.alias":
            _remove(entry)
    for entry in (share / "doc").glob("*/*"):
        if entry.name != "copyright" and not entry.parent.is_symlink():
            _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()

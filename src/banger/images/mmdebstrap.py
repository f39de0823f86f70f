"""A Debian root tree made by mmdebstrap, with the downloaded packages kept for the next time."""

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from banger.images.confine import run_confined
from banger.model.errors import CommandFailed
from banger.model.progress import Progress
from banger.system.files import in_thread
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
_APT = ('Acquire::Languages "none"', 'APT::Install-Recommends "false"')
_FETCHED = re.compile(r"^Get:(\d+) ")
_CONFIGURED = re.compile(r"^Setting up (\S+)")
_STEP = re.compile(r"^I: ((?:running apt-get|downloading|extracting|installing) .+)$")


@dataclass(frozen=True)
class Recipe:
    """What is installed: the suite, apt's one-line sources (none: mmdebstrap's default), packages, kernel metas."""

    suite: str
    sources: Sequence[str]
    packages: Sequence[str]
    kernels: Sequence[str]


def command(recipe: Recipe, root: Path, kernel_out: Path, hook: Path) -> list[str]:
    """The argv; `kernel_out` receives the kernel's .deb."""
    call = ["sh", str(hook)]
    words = [shlex.join(call), '"$1"', shlex.join([str(kernel_out), *recipe.kernels])]
    argv = [find_program("mmdebstrap", package="mmdebstrap"), "--verbose", "--mode=root", "--format=directory"]
    argv += ["--variant=minbase", f"--include={','.join(recipe.packages)}"]
    # the archives are taken to the cache afterwards, by us
    argv += ["--skip=check/empty,essential/unlink,cleanup/apt/cache"]
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


async def install(recipe: Recipe, root: Path, kernel_out: Path, cache: Path, progress: Progress) -> None:
    """Make `root` and put the kernel's .deb in `kernel_out`; both are created. The caller removes them on failure.

    Raises `CommandFailed` with the last lines of output, `Timeout`.
    """
    kernel_out.mkdir()
    archives = root / "var/cache/apt/archives"
    await in_thread(_prefill, cache, archives, root)
    with as_file(files("banger.images").joinpath("files/kernel-hook.sh")) as hook:
        try:
            argv = command(recipe, root, kernel_out, hook)
            await run_confined(argv, timeout=DEADLINE_S, on_line=_Reporter(progress).line)
        except CommandFailed as error:
            raise _explain(error) from error
    await in_thread(_keep, archives, kernel_out, cache)
    await in_thread(drop_documents, root)


def _explain(error: CommandFailed) -> CommandFailed:
    """The same error with its first true error line, and with the step that helps when a mirror is the cause."""
    lines = str(error.details.get("stderr", "")).splitlines()
    causes = [line[3:] for line in lines if line.startswith("E: ") and "mmdebstrap" not in line]
    text = " ".join(lines)
    unreachable = "Failed to fetch" in text or "Could not resolve" in text or "Unable to locate" in text
    hint = "check the network, or name another mirror with --mirror" if unreachable else error.hint
    return CommandFailed(
        f"mmdebstrap failed: {causes[0]}" if causes else error.message, hint=hint, details=error.details
    )


def _prefill(cache: Path, archives: Path, root: Path) -> None:
    """Begin the root: dpkg's settings, and copies of the cached packages; not links, as what runs there may write."""
    archives.mkdir(parents=True)
    root.chmod(0o755)
    settings = root / _DPKG_FILE
    settings.parent.mkdir(parents=True)
    settings.write_text("".join(f"{line}\n" for line in _DPKG))
    for package in _cached(cache):
        shutil.copy2(package, archives / package.name)


def _cached(cache: Path) -> list[Path]:
    """The cache's packages, if nobody but root can have put them there: apt compares only their size."""
    try:
        status = cache.lstat()
    except FileNotFoundError:
        return []
    if cache.is_symlink() or status.st_uid != 0 or status.st_mode & 0o022:
        return []
    return [file for file in cache.glob("*.deb") if file.is_file() and not file.is_symlink()]


def _keep(archives: Path, kernel_out: Path, cache: Path) -> None:
    """Let the cache hold the packages of this run and no others, and empty the root's archives."""
    cache.mkdir(parents=True, mode=0o700, exist_ok=True)
    fresh = [*archives.glob("*.deb"), *kernel_out.glob("*.deb")]
    names = {package.name for package in fresh}
    for stale in cache.glob("*.deb"):
        if stale.name not in names:
            stale.unlink()
    for package in fresh:
        if not (cache / package.name).exists():
            partial = cache / f".{package.name}.partial"
            shutil.copyfile(package, partial)
            partial.rename(cache / package.name)
    for package in archives.glob("*.deb"):
        package.unlink()


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

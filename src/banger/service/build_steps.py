"""The steps of a build: what each does in the guest, and what its digest is taken over."""

import hashlib
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from banger.guest.copies import Told, Tree, check_source, digest_tree, write_files, write_tree
from banger.guest.opencode import opencode_files, opencode_links
from banger.images import opencode
from banger.images.distros import ENVIRONMENT, Distro, distro_of
from banger.jobs.operations import Job
from banger.model.errors import BangerError, CommandFailed, Invalid, Timeout
from banger.model.recipe import SCRIPT_MAX, BuildSpec, Copy
from banger.paths import Paths
from banger.service.build_log import BuildLog
from banger.system.files import in_thread, remove_tree
from banger.system.pipes import produced

if TYPE_CHECKING:
    from banger.guest.shell import Shell

TITLE_MAX = 60
INITS = ("systemd", "openrc", "runit")
_SCRATCH = "/var/tmp/banger-build"
# GNU tar would put a directory in the place of a link to one, and give directories that are there other modes
_UNTAR = (
    "options=; if tar --version 2>/dev/null | grep -q 'GNU tar'; "
    "then options='--keep-directory-symlink --no-overwrite-dir'; fi; "
    "mkdir -p -- {place} && tar -x -p -o $options -f - -C {place}"
)
_EXPORTS = "".join(f"export {name}={shlex.quote(value)}; " for name, value in ENVIRONMENT.items())


class Bench:
    """What a step works at: a guest that it can run commands in.

    `init` is the guest's init system, `scratch` a directory on the host that goes with the machine.
    """

    def __init__(self, shell: "Shell", job: Job, log: BuildLog, *, init: str, scratch: Path, seconds: float) -> None:
        self.job = job
        self.init = init
        self.scratch = scratch
        self._shell = shell
        self._log = log
        self._seconds = seconds

    async def run(self, command: str, *, write: Callable[[BinaryIO], object] | None = None) -> None:
        """Run a shell command, whose input is what `write` writes. Raises `CommandFailed`, `Timeout`."""
        status = await self.status(command, write=write)
        if status:
            raise CommandFailed(f"it ended with status {status}", details={"status": status})

    async def status(
        self,
        command: str,
        *,
        write: Callable[[BinaryIO], object] | None = None,
        heard: Callable[[str], None] | None = None,
    ) -> int:
        """The exit status of a command, whose lines go to `heard`, or to whoever watches and the log."""
        hear = heard or self._heard
        command = _EXPORTS + command
        if write is None:
            return await self._shell.run(command, hear, timeout=self._seconds)
        async with aclosing(produced(write)) as stream:
            return await self._shell.run(command, hear, timeout=self._seconds, stdin=stream)

    def _heard(self, line: str) -> None:
        self._log.line(line)
        self.job.output(line)

    async def unpack(self, place: str, write: Callable[[BinaryIO], object]) -> None:
        """Unpack the tar archive that `write` writes into a directory of the guest, which is made at need."""
        await self.run(_UNTAR.replace("{place}", shlex.quote(place)), write=write)


@dataclass(frozen=True)
class Step:
    """`digest`, in hex, is over all that the step does besides what the steps before it did."""

    kind: str
    title: str
    digest: str
    run: Callable[[Bench], Awaitable[None]]


async def take(step: Step, bench: Bench, log: BuildLog) -> None:
    """Do a step as a stage. An error of its own says which it was, with the last lines that it printed."""
    log.begin(step.title)
    async with bench.job.stage(step.title):
        try:
            await step.run(bench)
        except (CommandFailed, Timeout) as error:
            last = log.last()
            said = f": {last[-1]}" if last else ""
            hint = "build_step_timeout_s in config.toml is how long a step may take; " if _late(error) else ""
            raise type(error)(
                f"the step {step.title!r} failed: {error.message}{said if not _late(error) else ''}",
                hint=f"{hint}its whole output is in {log.path}",
                details={**error.details, "step": step.title, "output": last},
            ) from error


def _late(error: BangerError) -> bool:
    return isinstance(error, Timeout)


def check_steps(spec: BuildSpec, distro: str) -> None:
    """Everything that can be said before anything starts. Raises `Invalid`, `Unsupported`."""
    if spec.packages or spec.docker or spec.opencode:
        distro_of(distro).check_packages(spec.packages)
    for copy in spec.copy:
        check_source(Path(copy.source))
    for script in spec.scripts:
        check_source(Path(script))
        if not Path(script).is_file() or Path(script).stat().st_size > SCRIPT_MAX:
            raise Invalid(f"{script} is no script", hint=f"name a file of at most {SCRIPT_MAX >> 20} MiB")


def plan(spec: BuildSpec, distro: str, paths: Paths, npm_registry: str, told: Told = lambda _: None) -> list[Step]:
    """The steps in their order; reads all that is copied once, for its digest, as `digest_tree`. Raises `Invalid`."""
    steps: list[Step] = []
    if spec.packages:
        steps.append(_packages(distro_of(distro), spec.packages))
    if spec.docker:
        steps.append(_docker(distro_of(distro)))
    if spec.opencode:
        steps.append(_opencode(opencode.BUILDS[distro_of(distro).libc], paths, npm_registry))
    steps += [_copy(copy, told) for copy in spec.copy]
    steps += [_script(Path(script)) for script in spec.scripts]
    return steps


def _digest(*words: str | bytes) -> str:
    digest = hashlib.sha256()
    for word in words:
        data = word.encode() if isinstance(word, str) else word
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def _title(kind: str, words: Sequence[str]) -> str:
    text = f"{kind} {', '.join(words)}"
    return text if len(text) <= TITLE_MAX else f"{text[: TITLE_MAX - 3]}..."


def _packages(distro: Distro, packages: Sequence[str]) -> Step:
    names = sorted(set(packages))
    command = distro.install_command(names)
    return Step("packages", _title("packages", names), _digest(command), lambda bench: bench.run(command))


def _docker(distro: Distro) -> Step:
    command = f"{{ {distro.install_command(distro.docker)}; }} && {distro.enable_docker}"
    return Step("docker", "docker", _digest(command), lambda bench: bench.run(command))


def _opencode(build: opencode.Build, paths: Paths, npm_registry: str) -> Step:
    async def run(bench: Bench) -> None:
        package = await opencode.locate(build, paths.downloads, npm_registry or None)
        await opencode.fetch(package, bench.job)
        root = bench.scratch / ".opencode"
        try:
            root.mkdir(mode=0o700)
            await in_thread(opencode.install, package.file, root)
            await bench.unpack("/", lambda out: write_tree(root, "", out))
        finally:
            await remove_tree(root)
        files, links = opencode_files(bench.init), opencode_links(bench.init)
        await bench.unpack("/", lambda out: write_files(files, links, out))

    parts = [
        part for init in INITS for path, (text, _) in sorted(opencode_files(init).items()) for part in (path, text)
    ]
    title = f"opencode {build.version}"
    return Step("opencode", title, _digest(build.package, build.version, build.integrity, *parts), run)


def _copy(copy: Copy, told: Told) -> Step:
    source = Path(copy.source)
    tree = digest_tree(source, told)
    into = copy.destination
    name = ""
    if not source.is_dir():
        directory, _, name = copy.destination.rpartition("/")
        into, name = directory or "/", name or source.name

    async def run(bench: Bench) -> None:
        sent: list[Tree] = []
        await bench.unpack(into, lambda out: sent.append(write_tree(source, name, out)))
        if sent != [tree]:
            raise Invalid(f"{source} was changed while the image was built", hint="build it again")

    title = _title("copy", [f"{source.name} to {copy.destination}"])
    return Step("copy", title, _digest(into, name, tree.digest), run)


def _script(path: Path) -> Step:
    with path.open("rb") as file:
        text = file.read(SCRIPT_MAX)
    name = shlex.quote(f"{_SCRATCH}/script")

    # one login for both: each takes seconds on an emulated processor
    interpreter = "" if text.startswith(b"#!") else "sh "
    command = f"rm -rf {_SCRATCH} && mkdir -m 700 {_SCRATCH} && cat >{name} && chmod 700 {name} || exit; "
    command += f"cd /root; {interpreter}{name} </dev/null; status=$?; rm -rf {_SCRATCH}; exit $status"

    async def run(bench: Bench) -> None:
        await bench.run(command, write=lambda out: out.write(text))

    return Step("script", _title("script", [path.name]), _digest(text), run)

"""Stand-ins for the executables `firecracker` and `jailer`, where neither can run.

They record how they were started and prove the way there: what they cannot prove is that Firecracker itself takes it.
The machine behind them is real: banger-vmm, started as the stand-in was, in the jail with the jail's files only.
"""

import json
import sys
from pathlib import Path
from typing import Any

from banger.system.host import boot_id

ROOT = Path(__file__).parents[2]

_FIRECRACKER = """#!{python}
# the machine is banger-vmm's; releases with Firecracker's fault of pause and resume have it here too
import json, os, sys
if sys.argv[1:] == ["--version"]:
    print("Firecracker v{version}\\n")
    sys.exit(0)
if os.access("{directory}", os.W_OK):
    fds = {{fd: os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd") if int(fd) < 1000
           and os.path.exists("/proc/self/fd/" + fd)}}
    with open("{directory}/firecracker.jsonl", "a") as file:
        print(json.dumps({{"argv": sys.argv, "fds": fds, "sid": os.getsid(0), "pid": os.getpid()}}), file=file)
sys.path.insert(0, "{source}")
sys.argv += ["--accelerator-cache", os.environ.get("FAKE_ACCELERATORS", "{directory}/tcg.json")]
from banger.qemu.entry import _without_tls
_without_tls()
from banger.qemu import api, main, vmm
api.API_VERSION = "{version}"
from banger.qemu.vsock.host import Host
if {hangs}:
    state, pause, resume, accept = dict(paused=False, deaf=[]), vmm.Vmm.pause, vmm.Vmm.resume, Host.accept
    async def pausing(self):
        state["paused"] = True
        await pause(self)
    def accepting(self):
        if state["paused"]:
            state["deaf"].append(self._listener.accept())
        else:
            accept(self)
    vmm.Vmm.pause, Host.accept = pausing, accepting
sys.exit(main.main())
"""

_JAILER = """#!{python}
# as Firecracker's jailer (docs/jailer.md there): a chroot, namespaces, a user; then the engine
import ctypes, json, os, shutil, sys, time
argv = sys.argv[1:]
ours, theirs = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
flags = {{"--new-pid-ns", "--daemonize"}}
options, words = [], list(ours)
while words:
    word = words.pop(0)
    options.append((word, None if word in flags else words.pop(0)))
given = dict(options)
program = os.path.realpath(given["--exec-file"])
name = os.path.basename(program)
root = os.path.join(given["--chroot-base-dir"], name, given["--id"], "root")
uid, gid = int(given["--uid"]), int(given["--gid"])
files = {{}}
for directory, _, names in os.walk(root):
    for entry in [directory, *(os.path.join(directory, n) for n in names)]:
        seen = os.stat(entry)
        files[os.path.relpath(entry, root)] = [oct(seen.st_mode), seen.st_uid, seen.st_nlink]
with open("{directory}/jailer.jsonl", "a") as file:
    print(json.dumps({{"argv": sys.argv, "options": options, "rest": theirs, "files": files, "root": root}}), file=file)
os.makedirs(root, exist_ok=True)
shutil.copy(program, os.path.join(root, name))
os.chown(root, uid, gid)
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWPID, BIND, REC, PRIVATE = 0x20000, 0x20000000, 4096, 16384, 1 << 18
assert libc.unshare(NEWPID) == 0
pid = os.fork()
if pid:
    with open(os.path.join(root, name + ".pid"), "w") as file:
        file.write(str(pid))
    os._exit(0)
assert libc.unshare(NEWNS) == 0
mount = lambda source, target, kind, flag: libc.mount(source, target.encode(), kind, flag, None)
assert mount(None, "/", None, PRIVATE | REC) == 0
# what only this stand-in needs: the real engine is one static executable
for path in ("/usr", "/bin", "/lib", "/lib64", "/etc", "/dev", *{needed}):
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
        assert mount(path.encode(), root + path, None, BIND | REC) == 0
os.makedirs(root + "/proc", exist_ok=True)
os.makedirs(root + "/tmp", exist_ok=True)
os.chmod(root + "/tmp", 0o777)
assert mount(b"proc", root + "/proc", b"proc", 0) == 0
assert mount(root.encode(), root, None, BIND | REC) == 0
os.chdir(root)
os.mkdir("old_root")
assert libc.syscall(155, b".", b"old_root") == 0  # pivot_root(2)
os.chroot(".")
os.chdir("/")
assert libc.umount2(b"old_root", 2) == 0
os.rmdir("old_root")
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
now = str(time.time_ns() // 1000)
times = ["--start-time-us", now, "--start-time-cpu-us", "0"]
os.execve("/" + name, ["/" + name, "--id=" + given["--id"], *times, *theirs],
          {{"PATH": "/usr/bin:/usr/sbin", "HOME": "/run", "FAKE_ACCELERATORS": "/run/accelerators.json"}})
"""


class Fakes:
    """The stand-ins in `directory`, and what they have recorded."""

    def __init__(self, directory: Path, *, version: str = "1.15.1", jailer: bool = True) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        hangs = (1, 16, 0) <= tuple(int(part) for part in version.split(".")) < (1, 17, 0)
        words = {
            "python": sys.executable,
            "directory": directory,
            "source": ROOT / "src",
            "version": version,
            "hangs": hangs,
            "needed": tuple({str(ROOT), sys.prefix, sys.base_prefix}),
        }
        self._write("firecracker", _FIRECRACKER.format(**words))
        if jailer:
            self._write("jailer", _JAILER.format(**words))

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)
        (self.directory / name).chmod(0o755)

    def records(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pretend_kvm(cache: Path, version: str) -> None:
    """Make banger believe that KVM was proven: the stand-ins do not use it."""
    cache.mkdir(parents=True, exist_ok=True)
    verdict = {"accelerator": "kvm", "reason": "pretended by a test", "qemu_version": version, "boot_id": boot_id()}
    (cache / "accelerators.json").write_text(json.dumps(verdict))

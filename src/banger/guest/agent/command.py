"""POST /exec: the request, checked, and everything about its user found before the fork."""

import os

from banger.guest.agent.http1 import Refused, document

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FIELDS = frozenset({"argv", "env", "cwd", "user", "tty", "rows", "cols", "timeout_s"})


class Account:
    """A user as a process needs it: ids, all groups, and the passwd fields."""

    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, name: str, uid: int, gid: int, home: str, shell: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home
        self.shell = shell
        self.groups = os.getgrouplist(name, gid)


class Command:
    """A checked exec request: argv and env as bytes, ready for execve."""

    __slots__ = ("account", "argv", "cols", "cwd", "env", "rows", "timeout_s", "tty")

    def __init__(self, argv: "list[bytes]", account: Account) -> None:
        self.argv = argv
        self.account = account
        self.env: dict[bytes, bytes] = {}
        self.cwd: bytes | None = None
        self.tty = False
        self.rows = 24
        self.cols = 80
        self.timeout_s: float | None = None


def parse(body: bytes) -> Command:
    """The command in a request body. Raises `Refused` 400 with the field and the reason."""
    given = document(body, _FIELDS)
    argv = given.get("argv")
    if not isinstance(argv, list) or not argv or argv[0] == "":
        raise Refused(400, "argv is not a list of strings that starts with a program")
    command = Command([_bytes("argv", item) for item in argv], find_account(given.get("user")))
    command.tty = given.get("tty", False) is True
    command.rows, command.cols = size(given.get("rows", 24)), size(given.get("cols", 80))
    command.cwd = _bytes("cwd", given["cwd"]) if "cwd" in given else None
    command.timeout_s = _seconds(given["timeout_s"]) if "timeout_s" in given else None
    command.env = _environment(command, given.get("env", {}))
    return command


def _bytes(field: str, value: object) -> bytes:
    if not isinstance(value, str) or "\0" in value:
        raise Refused(400, f"{field} holds something that is not a string without NUL")
    try:
        return os.fsencode(value)
    except UnicodeEncodeError:
        raise Refused(400, f"{field} holds a lone surrogate") from None


def size(value: object) -> int:
    """Rows or columns of a terminal. Raises `Refused` 400."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise Refused(400, "rows and cols are numbers from 1 to 65535")
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise Refused(400, "timeout_s is not a number of seconds above 0")
    return float(value)


def find_account(user: object) -> Account:
    """The account of a name, of a number in digits, or of the agent's own user for None."""
    import pwd

    if user is not None and not isinstance(user, str):
        raise Refused(400, "user is not a string")
    try:
        if user is None:
            entry = pwd.getpwuid(os.getuid())
        else:
            entry = pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
    except (KeyError, ValueError, OverflowError):
        if user is None:  # an image without /etc/passwd
            return Account("root", os.getuid(), os.getgid(), "/", "/bin/sh")
        raise Refused(400, f"there is no user {user[:100]}") from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell or "/bin/sh")


def _environment(command: Command, extra: object) -> "dict[bytes, bytes]":
    account = command.account
    plain = {"PATH": PATH, "HOME": account.home, "USER": account.name, "LOGNAME": account.name,
             "SHELL": account.shell, "LANG": "C.UTF-8"}  # fmt: skip
    if command.tty:
        plain["TERM"] = "xterm-256color"
    env = {os.fsencode(name): os.fsencode(value) for name, value in plain.items()}
    if not isinstance(extra, dict):
        raise Refused(400, "env is not an object")
    for name, value in extra.items():
        if not name or "=" in name:
            raise Refused(400, "env holds a name that is empty or has an equals sign")
        env[_bytes("env", name)] = _bytes("env", value)
    return env

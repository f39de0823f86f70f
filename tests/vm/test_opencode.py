"""A real opencode server in a real guest: started with a password of its own, waited for, answered."""

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.home import Home
from tests.vm.conftest import track


@pytest.fixture(scope="module")
def coder(home: Home, opencode_image: str) -> Iterator[str]:
    """A VM whose opencode answers."""
    home.run("vm", "create", "--name", "coder", "--image", opencode_image)
    yield "coder"
    home.run("vm", "delete", "coder", "--yes")


@contextmanager
def forwarded(home: Home, name: str) -> Iterator[str]:
    """The URL at which the guest's opencode answers here."""
    child = home.start("vm", "opencode", name, "--json")
    assert child.stdout is not None
    try:
        text = ""
        while not text.endswith("}\n"):
            line = child.stdout.readline().decode()
            assert line, child.communicate()
            text += line
        yield json.loads(text)["url"]
    finally:
        child.terminate()
        child.communicate(timeout=30)


def ask(url: str, password: str | None) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{url}/global/health")
    if password is not None:
        pair = base64.b64encode(f"opencode:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def secret(home: Home, name: str) -> str:
    return str(home.json("vm", "opencode", name, "--print")["password"])


def stages(home: Home, name: str) -> list[str]:
    created = next(o for o in home.json("operation", "list") if (o["kind"], o["target"]) == ("vm.create", f"vm/{name}"))
    return [stage["name"] for stage in created["stages"]]


def test_create_waits_until_it_answers(home: Home, coder: str) -> None:
    assert stages(home, coder)[-3:] == ["boot to healthy", "start opencode", "opencode"]
    assert home.json("vm", "show", coder)["opencode"] is True
    (check,) = [c for c in home.json("vm", "health", coder)["checks"] if c["name"] == "opencode"]
    assert check["ok"]
    assert not check["starting"]
    (port,) = [port for port in home.json("vm", "ports", coder) if port["port"] == 4096]
    assert port["process"] == "opencode"


def test_it_answers_401_without_and_200_with_credentials(home: Home, coder: str) -> None:
    with forwarded(home, coder) as url:
        assert ask(url, None)[0] == 401
        assert ask(url, "wrong")[0] == 401
        status, body = ask(url, secret(home, coder))
        assert status == 200
        assert json.loads(body)["healthy"] is True


def test_the_password_is_in_one_private_file_and_on_no_command_line(home: Home, coder: str) -> None:
    password = secret(home, coder)
    vm = home.json("vm", "show", coder)
    kept = home.state / "vms" / vm["id"] / "opencode.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert password in kept.read_text()
    here = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
    assert not [word for word in here if password in word]
    lines = home.run("vm", "exec", coder, "--", "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/cmdline").stdout.decode()
    assert password not in lines
    mode = home.run("vm", "exec", coder, "--", "stat", "-c", "%a %U", "/run/banger/opencode.env").stdout.decode()
    assert mode == "600 root\n"
    assert password not in home.run("vm", "logs", coder).stdout.decode()


BASELINE = r"""
set -eu
cd /root && rm -rf try && mkdir try && cd try
git init -q --bare there.git
git clone -q there.git here 2>/dev/null
cd here
printf 'int printf(const char *, ...);\nint main(void) { return printf("\303\244h\\n") != 4; }\n' >hello.c
git add . && git -c user.name=a -c user.email=a@example.org commit -qm first && git push -q origin HEAD
git -C ../there.git log --all --format=%s
gcc -Wall hello.c -o hello && ./hello
rg --count main hello.c
fd --extension c
echo '{"a": [1, 2]}' | jq -c .a
tmux new-session -d -s work 'sleep 60' && tmux list-sessions -F '#{session_name}' && tmux kill-server
tar -cJf - hello.c | tar -tJ
zip -q a.zip hello.c && unzip -Z1 a.zip
rsync hello.c copy.c && cmp hello.c copy.c
sudo id -un
locale charmap
curl --version | head -n 1 | cut -d ' ' -f 1
"""


def test_the_baseline_is_there_and_works(home: Home, coder: str) -> None:
    said = home.run("vm", "exec", coder, "--", "bash", "-c", BASELINE).stdout.decode().split("\n")
    assert said == ["first", "äh", "1", "hello.c", "[1,2]", "work", "hello.c", "hello.c", "root", "UTF-8", "curl", ""]


def test_a_login_completes_words_and_knows_its_locale_whatever_the_persons_is(home: Home, coder: str) -> None:
    script = "perl -e 1; echo $LANG; bash -lic 'type -t __load_completion'; editor --version | head -n 1"
    done = home.run("vm", "ssh", coder, "--", "-o", "SetEnv=LC_TIME=fr_FR.UTF-8", script)
    lang, completes, editor = done.stdout.decode().splitlines()
    assert (lang, completes) == ("C.UTF-8", "function")
    assert "nano" in editor
    assert b"locale" not in done.stderr


def pid_of_opencode(home: Home, name: str) -> str:
    return home.run("vm", "exec", name, "--", "pgrep", "-x", "opencode", status=None).stdout.decode().strip()


def test_it_comes_back_when_it_is_killed(home: Home, coder: str) -> None:
    before = pid_of_opencode(home, coder)
    home.run("vm", "exec", coder, "--", "kill", "-9", before)
    deadline = time.monotonic() + 60
    while (now := pid_of_opencode(home, coder)) in ("", before):
        assert time.monotonic() < deadline, now
        time.sleep(0.5)


def test_the_password_stays_over_a_restart(home: Home, coder: str) -> None:
    password = secret(home, coder)
    home.run("vm", "restart", coder, "--no-wait-opencode")
    assert secret(home, coder) == password
    given = home.run("vm", "exec", coder, "--", "cat", "/run/banger/opencode.env").stdout.decode()
    assert given == f"OPENCODE_SERVER_PASSWORD={password}\n"


@pytest.fixture
def quick(images: Path, opencode_image: str) -> Iterator[Home]:
    """A banger of its own that gives opencode next to no time."""
    made = track(Home(images=images, settings="opencode_timeout_s = 0.1\n"))
    yield made
    made.close()


def test_not_waiting_returns_at_once_and_too_little_time_is_an_error_that_leaves_nothing(
    quick: Home, opencode_image: str
) -> None:
    text = quick.error("vm", "create", "--name", "a", "--image", opencode_image, status=6)
    assert "opencode" in text
    assert "opencode_timeout_s" in text
    assert "check | agent: ok" in text
    assert quick.json("vm", "list") == []
    quick.run("vm", "create", "--name", "a", "--image", opencode_image, "--no-wait-opencode")
    assert stages(quick, "a")[-1] == "start opencode"


def test_too_little_memory_is_refused_and_a_vm_without_it_takes_less(home: Home, opencode_image: str) -> None:
    text = home.error("vm", "create", "--image", opencode_image, "--memory", "512M", status=2)
    assert "1024 MiB" in text
    assert "--no-opencode" in text
    home.run("vm", "create", "small", "--image", opencode_image, "--memory", "512M", "--no-opencode")
    try:
        assert stages(home, "small")[-1] == "boot to healthy"
        assert "no opencode" in home.error("vm", "opencode", "small", status=4)
        running = home.run("vm", "exec", "small", "--", "pgrep", "-x", "opencode", status=1)
        assert running.stdout == b""
        assert home.json("vm", "health", "small", "--wait", "60")["status"] == "healthy"
    finally:
        home.run("vm", "delete", "small", "--yes")


def test_ctrl_c_ends_the_forward_and_says_so(home: Home, coder: str) -> None:
    child = home.start("vm", "opencode", coder, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert b"http://127.0.0.1:" in child.stdout.readline()
    child.terminate()
    _, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert b"Traceback" not in err

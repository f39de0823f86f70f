"""The service `opencode` of each init system: what is installed, and what the script that starts it does."""

import subprocess
from pathlib import Path

import pytest

from banger.guest.agent.credentials import FILE
from banger.guest.bundle import agent_files
from banger.guest.opencode import ENVIRONMENT, opencode_files, opencode_links
from banger.images.opencode import PROGRAM
from banger.model.errors import Invalid

INITS = ("systemd", "openrc", "runit")


@pytest.mark.parametrize("init", INITS)
def test_every_init_starts_the_program_with_the_file_that_the_agent_writes(init: str) -> None:
    text = b"".join(content for content, _ in opencode_files(init).values()).decode()
    assert f"/{ENVIRONMENT}" == FILE
    assert f"{PROGRAM} serve --hostname 0.0.0.0 --port 4096" in text
    for said in (FILE, "OPENCODE_DISABLE_AUTOUPDATE=1", "OPENCODE_DISABLE_MODELS_FETCH=1", "HOME=/root"):
        assert said in text
    assert not set(opencode_files(init)) & set(agent_files())
    assert not [link for link in opencode_links(init) if "wants" in link or "runlevels" in link]


def test_another_init_is_refused() -> None:
    with pytest.raises(Invalid, match="upstart"):
        opencode_files("upstart")


def script(tmp_path: Path, environment: str | None) -> "subprocess.CompletedProcess[str]":
    """The script with the guest's paths below `tmp_path`, and a program that tells what it was given."""
    program = tmp_path / "opencode"
    program.write_text('#!/bin/sh\nprintf "%s|%s|%s\\n" "$OPENCODE_SERVER_PASSWORD" "$OTHER" "$*"\n')
    program.chmod(0o755)
    if environment is not None:
        (tmp_path / "env").write_text(environment)
    text = opencode_files("runit")["etc/sv/opencode/run"][0].decode()
    text = text.replace(FILE, f"{tmp_path}/env").replace(PROGRAM, str(program)).replace("/root", str(tmp_path))
    return subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("password", ["plain-1_x", "$(touch made)", "a b'\"`", "\\n$HOME"])
def test_the_password_is_taken_as_it_stands_and_is_on_no_command_line(tmp_path: Path, password: str) -> None:
    done = script(tmp_path, f"OTHER=evil\nOPENCODE_SERVER_PASSWORD={password}\n")
    assert done.stdout == f"{password}||serve --hostname 0.0.0.0 --port 4096 --print-logs\n"
    assert not (tmp_path / "made").exists()


def test_without_the_file_it_does_not_start(tmp_path: Path) -> None:
    done = script(tmp_path, None)
    assert done.returncode == 1
    assert "the agent writes it" in done.stderr
    assert done.stdout == ""

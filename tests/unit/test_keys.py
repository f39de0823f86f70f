"""Fingerprints and authorized_keys files."""

import subprocess
from pathlib import Path

import pytest

from banger.model.keys import exchange, fingerprint
from tests.unit.images.tiny import OTHER, key

OLD, NEW = key("O"), key("N")


def test_a_fingerprint_is_what_ssh_keygen_shows(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True, timeout=30)
    told = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "k.pub")], capture_output=True, check=True, text=True)
    line = (tmp_path / "k.pub").read_text()
    assert fingerprint(line) == told.stdout.split()[1]
    assert fingerprint(f'command="echo a b",no-pty {line}') == told.stdout.split()[1]


@pytest.mark.parametrize("line", ["", "#", f"# {OTHER}", "ssh-ed25519", "ssh-ed25519 !!", "hello world"])
def test_a_line_without_a_key_has_no_fingerprint(line: str) -> None:
    assert fingerprint(line) == ""


@pytest.mark.parametrize(
    ("before", "old", "after"),
    [
        ("", "", [NEW.line]),
        (f"{OLD.line}\n", OLD.fingerprint, [NEW.line]),
        (f"{OLD.line}\n{OTHER}\n", OLD.fingerprint, [NEW.line, OTHER]),
        (f"# mine\n{OTHER}\n\n{OLD.line}", "", [NEW.line, "# mine", OTHER]),
        (f"{OTHER}\n{OLD.line}\n", "SHA256:of-a-key-that-is-not-there", [NEW.line, OTHER]),
        (f"{key('M', 'me').line}\n", key("M").fingerprint, [NEW.line]),
        (f"{NEW.line}\n{OTHER}\n", "", [NEW.line, OTHER]),
        (f"{NEW.line}\n{OTHER}\n", NEW.fingerprint, [NEW.line, OTHER]),
        ("# by banger\n", "", [NEW.line, "# by banger"]),
    ],
)  # fmt: skip
def test_the_old_key_goes_the_new_one_comes_and_other_entries_stay(before: str, old: str, after: list[str]) -> None:
    assert exchange(before, NEW, old).splitlines() == after

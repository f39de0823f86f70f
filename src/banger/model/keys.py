"""SSH public keys as lines of text: their fingerprints, and authorized_keys files (sshd(8)) that hold them."""

import base64
import binascii
import hashlib
from itertools import pairwise
from typing import NamedTuple

_TYPES = ("ssh-", "ecdsa-", "sk-")
COMMENT = "banger"  # of the keys that banger makes


class PublicKey(NamedTuple):
    """A public key: its line, as authorized_keys has it, and its fingerprint, as `ssh-keygen -l` shows it."""

    line: str
    fingerprint: str


def fingerprint(line: str) -> str:
    """The fingerprint of the key in this line, options before it or not; empty when there is none."""
    words = line.split()
    if words and words[0].startswith("#"):
        return ""
    for kind, encoded in pairwise(words):
        if kind.startswith(_TYPES):
            try:
                blob = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                continue
            return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return ""


def exchange(text: str, key: PublicKey, old: str) -> str:
    """An authorized_keys file with this key in place of the one whose fingerprint is `old`; other entries stay.

    Where no entry has that fingerprint, those go whose comment says that banger made them.
    """
    entries = [line for line in text.splitlines() if line.strip()]
    if old and any(fingerprint(line) == old for line in entries):
        kept = [line for line in entries if fingerprint(line) != old]
    else:
        kept = [line for line in entries if not (fingerprint(line) and line.split()[-1] == COMMENT)]
    return "".join(f"{line}\n" for line in (key.line, *(line for line in kept if fingerprint(line) != key.fingerprint)))

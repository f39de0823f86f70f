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

"""The runtime bundle: what this person's guests are given, described by bundle.json."""

from typing import Literal

import msgspec

BUNDLE_FORMAT = 1
AGENT = "agent"
SSH_KEY = "ssh/id_ed25519"
LEGACY_AGENT = "vsock-ping"  # what `agent` was called


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of bundle.json. Paths are relative to its directory and stay in it, or are absolute.

    agent            directory of the agent's Python, as it lies below /usr/lib/banger in a guest; the one called
                     `agent` is banger's own and kept up to date
    agent_version, agent_sha256  of banger's own agent, as it was copied
    ssh_key          the private key; its public half lies beside it
    ssh_fingerprint  of that key, as `ssh-keygen -l` shows it; None until it is made
    kernel           the kernel of images that bring none
    engine           what runs a VM that asks for no engine; None: chosen for each VM
    """

    agent_version: str = ""
    agent_sha256: str = ""
    agent: str = AGENT
    ssh_key: str = SSH_KEY
    ssh_fingerprint: str | None = None
    kernel: str | None = None
    engine: Literal["firecracker", "qemu"] | None = None
    format: int = BUNDLE_FORMAT

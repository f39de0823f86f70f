"""The SSH key pair of this person's VMs."""

from pathlib import Path

from banger.model.errors import Invalid
from banger.model.keys import PublicKey, fingerprint
from banger.system.process import find_program, run

_TIMEOUT_S = 30.0


def public_half(private: Path) -> Path:
    return private.with_name(private.name + ".pub")


async def make_pair(private: Path) -> None:
    """Make what is missing of the pair (ed25519, no passphrase, 0600): both, or the public half of the private one.

    Raises `HostRequirement`, `CommandFailed`.
    """
    keygen = find_program("ssh-keygen", package="openssh-client")
    public = public_half(private)
    if private.exists():
        if not public.exists():
            told = await run([keygen, "-y", "-P", "", "-f", str(private)], timeout=_TIMEOUT_S)
            fresh = private.with_name("new.pub")
            fresh.write_bytes(told.stdout.strip() + b"\n")
            fresh.rename(public)
        return
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = private.with_name("new")
    for leftover in (fresh, public_half(fresh)):
        leftover.unlink(missing_ok=True)
    await run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "banger", "-f", str(fresh)], timeout=_TIMEOUT_S)
    # a public half without its private one is of no use, and would never be made good
    public.unlink(missing_ok=True)
    fresh.rename(private)
    public_half(fresh).rename(public)


def read_public(public: Path) -> PublicKey:
    """The key in this file. Raises `Invalid` for a file that holds none."""
    try:
        line = public.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _no_key(public) from error
    if "\n" in line or not fingerprint(line):
        raise _no_key(public)
    return PublicKey(line, fingerprint(line))


def _no_key(public: Path) -> Invalid:
    return Invalid(f"{public} is no public SSH key", hint="remove it: it is made again from the private key")

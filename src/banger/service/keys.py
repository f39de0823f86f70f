"""The SSH key pair of this person's VMs: made once, kept with the state."""

from pathlib import Path

from banger.system.process import find_program, run


async def public_key(private: Path) -> str:
    """The public half of the pair, which is made at the first call (ed25519, no passphrase, 0600)."""
    public = private.with_suffix(".pub")
    if not public.exists():
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = private.with_name("new")
        for leftover in (fresh, fresh.with_suffix(".pub")):
            leftover.unlink(missing_ok=True)
        keygen = find_program("ssh-keygen", package="openssh-client")
        await run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "banger", "-f", str(fresh)], timeout=30)
        # the public half last: its presence means that the pair is whole
        fresh.rename(private)
        fresh.with_suffix(".pub").rename(public)
    return public.read_text().strip()

"""Who may talk to the agent: the host, by its CID, and nobody else."""

import pytest

from banger.guest.agent.server import is_host


def test_the_host_may() -> None:
    assert is_host((2, 1073741824))


@pytest.mark.parametrize(
    "peer", [(1, 5), (3, 5), (0, 5), (0xFFFFFFFF, 5), (2,), (2, 5, 6), ("2", 5), "", b"", None, 2, ["2", 5]]
)
def test_a_process_of_this_guest_or_another_guest_may_not(peer: object) -> None:
    """1 is the loopback, 3 the guest itself as it sees its own connections."""
    assert not is_host(peer)

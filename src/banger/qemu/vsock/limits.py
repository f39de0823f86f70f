"""What bounds the device; a test may use smaller figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Times in seconds, sizes in bytes, the rest counts."""

    connections: int = 1024
    resets: int = 1024  # replies waiting for receive buffers before we stop reading the guest's packets
    buffer: int = 256 * 1024  # what a guest may have in flight to us, for each connection
    batch: int = 128  # packets each way in one turn
    line_time: float = 5.0  # for a client to send its CONNECT line
    request_time: float = 2.0  # for a guest to answer a connection request
    close_time: float = 10.0  # for a guest to take what a vanished client left behind
    accept_pause: float = 0.5  # after the process ran out of file descriptors
    # A restored guest loses, silently, a connection made before it has handled its transport reset.
    restore_hold: float = 0.2
    restore_probes: tuple[float, ...] = (1.0, 3.0)

"""CRC-32C as ext4 uses it for metadata: reflected, no final inversion, chained by giving the last value."""

from functools import lru_cache

_POLYNOMIAL = 0x82F63B78
START = 0xFFFFFFFF


@lru_cache(maxsize=1)
def _table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        for _ in range(8):
            row = row >> 1 ^ (_POLYNOMIAL if row & 1 else 0)
        rows.append(row)
    return tuple(rows)


def crc32c(data: bytes, value: int = START) -> int:
    """The checksum of `data` behind what `value` stands for. About a tenth of a microsecond a byte."""
    table = _table()
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value

"""The checksum of all bytes that are stored."""

import google_crc32c


def crc32c(data: bytes) -> int:
    """CRC32C of `data`, 32 bits."""
    return int(google_crc32c.value(data))

"""How far a long job is, in plain lines: pictures, pictures a second, MiB a second, time left."""

import logging
import math
import time

logger = logging.getLogger(__name__)

MIB = 2**20


class Pace:
    """A line every `every_s` seconds, and one at the end."""

    def __init__(self, verb: str, total: int, every_s: float) -> None:
        self._verb, self._total, self._every_s = verb, total, every_s
        self._pictures = self._bytes = 0
        self._start_s = self._said_s = time.monotonic()

    def add(self, pictures: int, size: int) -> None:
        """Count `pictures` more as done, which have `size` bytes together."""
        self._pictures += pictures
        self._bytes += size
        now_s = time.monotonic()
        passed_s = max(now_s - self._start_s, 1e-3)
        rate = f"{self._pictures / passed_s:.0f}/s, {self._bytes / MIB / passed_s:.1f} MiB/s"
        if self._pictures == self._total:
            logger.info("%s %d pictures, %s", self._verb, self._total, rate)
        elif now_s - self._said_s >= self._every_s:
            self._said_s = now_s
            left_s = math.ceil((self._total - self._pictures) * passed_s / max(self._pictures, 1))
            logger.info("%s %d of %d pictures, %s, %d s left", self._verb, self._pictures, self._total, rate, left_s)

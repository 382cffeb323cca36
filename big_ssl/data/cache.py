"""Prepared images in memory, bounded in bytes."""

import threading
from collections.abc import Callable, Hashable, Mapping

import numpy as np

from big_ssl.data.bands import Bands
from big_ssl.data.crops import Prepared


class Cache:
    """Keeps prepared images until `capacity` bytes are full.

    No entry is evicted: an epoch's order is random, so a recent image is no likelier to come next, and an
    eviction would only cost the next epoch a hit.
    """

    def __init__(self, capacity: int):
        self._capacity, self._used = capacity, 0
        self._entries: dict[Hashable, Mapping[str, Prepared]] = {}
        self._lock = threading.Lock()

    def get(
        self, key: Hashable, encoded: bytes, prepare: Callable[[bytes], Mapping[str, Prepared]]
    ) -> Mapping[str, Prepared]:
        """prepare(encoded), {field: Prepared}, or its cached result.

        key: the record's key of the image; images under different keys are prepared in different ways.
        """
        entry = self._entries.get((key, encoded))
        if entry is not None:
            return entry
        prepared = prepare(encoded)
        size = len(encoded) + memory_bytes(prepared)
        with self._lock:
            if (key, encoded) not in self._entries and self._used + size <= self._capacity:
                self._entries[key, encoded] = prepared
                self._used += size
        return prepared


def memory_bytes(prepared: Mapping[str, Prepared]) -> int:
    """Bytes of arrays, Pillow's RGB images and Bands; pixels that several fields share count once."""
    distinct = {id(x.pixels): x.pixels for x in prepared.values()}
    return sum(_size(pixels) for pixels in distinct.values())


def _size(pixels):
    if isinstance(pixels, np.ndarray | Bands):
        return pixels.nbytes
    return 4 * pixels.width * pixels.height  # Pillow pads a pixel to four bytes

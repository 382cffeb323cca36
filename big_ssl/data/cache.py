"""Prepared pictures in memory, bounded in bytes."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image


class Cache:
    """What was made of encoded pictures, kept until `capacity` bytes are full.

    Nothing is dropped for what comes later: an epoch's order is random, so that what was used last is no
    likelier to come next, and dropping it would only cost the next epoch a hit.
    """

    def __init__(self, capacity: int):
        self._capacity, self._used = capacity, 0
        self._kept: dict[bytes, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    def get(self, encoded: bytes, prepare: Callable[[bytes], Mapping[str, Any]]) -> Mapping[str, Any]:
        """prepare(encoded), {view: array or picture}, or what it gave before."""
        cached = self._kept.get(encoded)
        if cached is not None:
            return cached
        prepared = prepare(encoded)
        size = len(encoded) + memory_bytes(prepared)
        with self._lock:
            if encoded not in self._kept and self._used + size <= self._capacity:
                self._kept[encoded] = prepared
                self._used += size
        return prepared


def memory_bytes(prepared: Mapping[str, Any]) -> int:
    """Bytes of arrays and of Pillow's RGB pictures, what several views share counted once."""
    return sum(_size(each) for each in {id(each): each for each in prepared.values()}.values())


def _size(prepared: np.ndarray | Image.Image):
    if isinstance(prepared, np.ndarray):
        return prepared.nbytes
    return 4 * prepared.width * prepared.height  # Pillow pads a pixel to four bytes

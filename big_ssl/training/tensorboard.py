"""Writes TensorBoard event files with scalars.

Written here because the existing libraries import PyTorch or TensorFlow if installed, and none can append to
a file in a bucket.

The layout is TensorFlow's: records (core/lib/io/record_writer.h) of Event messages (core/util/event.proto).
"""

import os
import socket
import struct
import time
from collections.abc import Mapping

from big_ssl import io

# Castagnoli's polynomial, reflected.
_POLYNOMIAL = 0x82F63B78


class EventFile:
    """A new event file in a folder.

    first_step: TensorBoard drops earlier files' events from this step on, since a resumed run repeats them.
    """

    def __init__(self, folder, first_step: int):
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = io.GrowingFile(io.as_path(folder) / name)
        session_start = _varint_field(1, 1)  # SessionLog.status = START
        self._file.write(
            record(_event(0, _bytes_field(3, b"brain.Event:2")))
            + record(_event(first_step, _bytes_field(7, session_start)))
        )
        self.flush, self.close = self._file.flush, self._file.close

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a step's scalars, {tag: value}."""
        scalars = (_bytes_field(1, tag.encode()) + _float_field(2, value) for tag, value in values.items())
        summary = b"".join(_bytes_field(1, scalar) for scalar in scalars)
        self._file.write(record(_event(step, _bytes_field(5, summary))))


def record(content: bytes) -> bytes:
    """Frames a record: its length, its content, and a checksum of each."""
    length = struct.pack("<Q", len(content))
    return length + _masked_checksum(length) + content + _masked_checksum(content)


def checksum(content: bytes) -> int:
    """The CRC-32C of content."""
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _masked_checksum(content):
    """TensorFlow's masked CRC, so that nested records are not checksums of checksums."""
    value = checksum(content)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _table()


def _event(step, fields):
    return b"\x09" + struct.pack("<d", time.time()) + _varint_field(2, step) + fields


def _varint(value):
    """Encodes a protocol buffers varint: seven bits per byte, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def _varint_field(number, value):
    return _varint(number << 3) + _varint(value)


def _bytes_field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _float_field(number, value):
    return _varint(number << 3 | 5) + struct.pack("<f", value)

"""A TensorBoard event file. It is written when the call returns, or has raised OSError: no thread fails later.

A record is its length, an Event (a message of Protocol Buffers) and their checksums (CRC-32C). The few fields of Event
that numbers need are encoded here: a library for it would import PyTorch where that is installed.
"""

import ctypes
import platform
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from jaxlm.filesystem import write_all

CRC_POLYNOMIAL = 0x82F63B78


class EventFile:
    """A new file in `folder`. TensorBoard forgets what older files have from `first_step` on (None: nothing)."""

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The time in whole seconds, as TensorBoard sorts the files by it, and then a name of its own.
        name = f"events.out.tfevents.{time.time():010.0f}.{platform.node()}.{time.time_ns()}"
        self._file = open(folder / name, "xb", buffering=0)
        self._write_event(_bytes_field(3, b"brain.Event:2"))  # file_version
        if first_step is not None:
            self._write_event(_varint_field(2, first_step) + _bytes_field(7, _varint_field(1, 1)))  # session_log: START

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one number a name."""
        summary = b""
        for name, value in values.items():
            number = struct.pack("<Bf", 2 << 3 | 5, ctypes.c_float(value).value)  # c_float: too large is infinite
            summary += _bytes_field(1, _bytes_field(1, name.encode()) + number)  # a value: tag, simple_value
        self._write_event(_varint_field(2, step) + _bytes_field(5, summary))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_event(self, fields: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + fields  # wall_time
        length = struct.pack("<Q", len(event))
        write_all(self._file, length + _masked_crc(length) + event + _masked_crc(event))


def _varint(number: int) -> bytes:
    """A number, seven bits a byte, the lowest first."""
    *head, last = (number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7))
    return bytes([*(part | 0x80 for part in head), last])


def _varint_field(field: int, number: int) -> bytes:
    return bytes([field << 3]) + _varint(number)


def _bytes_field(field: int, content: bytes) -> bytes:
    """A field that is a text or another message."""
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (CRC_POLYNOMIAL if crc & 1 else 0)
    return crc


_CRC_TABLE = tuple(map(_crc_of_byte, range(256)))


def _masked_crc(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted as in the record files of TensorFlow."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)

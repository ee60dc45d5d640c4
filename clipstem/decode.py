"""Pillow's pixels of the usual pictures, sooner than Pillow has them: RGB as PNG and as JPEG.

A picture comes here opened by Pillow, which has read and checked its header. What is not wholly
usual gives None, and Pillow decides what it is, so that it is also Pillow that finds fault.

PNG: W3C's Portable Network Graphics, third edition, chapters 5 (chunks) and 9 (filters).
H × W the picture.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL.Image import Image
from zlib_ng import zlib_ng

from clipstem.resize import compiled

HEADER = b"\0\0\0\x0dIHDR"
BEHIND_HEADER = 8 + 12 + 13  # signature, a chunk's frame, and what it holds
NOT_USUAL = (b"IHDR", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT")  # bombs; frames
NO_PIXELS = (b"tEXt", b"tIME")  # chunks that may follow the pixels
# What the decoders raise for broken streams; Pillow then says what is wrong with them. Of any type,
# because the stubs of zlib-ng have an instance for its class.
BROKEN: tuple[Any, ...] = (ValueError, struct.error, zlib_ng.error, MemoryError)
MOST_PARTS = 10_000  # of the pixels; usual writers make one of 8 KB or more


def rgb(data: bytes, opened: Image) -> NDArray[np.uint8] | None:
    """The pixels of an encoded picture that Pillow has opened, uint8 [H, W, 3]; None leaves it to
    Pillow."""
    if opened.mode != "RGB":
        return None
    try:
        match opened.format:
            case "PNG":
                return _of_png(data, opened)
            case "JPEG":
                return _of_jpeg(data, opened)
    except BROKEN:
        return None
    return None


def _of_jpeg(data: bytes, opened: Image) -> NDArray[np.uint8] | None:
    # What is decoded has the size that was checked, whatever else its markers may say.
    if simplejpeg.decode_jpeg_header(data)[:2] != (opened.height, opened.width):
        return None
    pixels_HW3: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    return pixels_HW3


def _of_png(data: bytes, opened: Image) -> NDArray[np.uint8] | None:
    name, width, height, *kind = struct.unpack_from(">8sII5B", data, 8)
    usual = name == HEADER and (width, height) == opened.size and kind == [8, 2, 0, 0, 0]
    if not usual or "transparency" in opened.info:
        return None  # of 16 bits, interlaced …
    most = height * (1 + 3 * width)
    inflate = zlib_ng.decompressobj()
    lines = inflate.decompress(_deflated(data), most + 1)  # a bomb ends there
    if len(lines) != most or not inflate.eof:
        return None
    pixels_HW3 = np.empty((height, width, 3), np.uint8)
    known = _unfilter(np.frombuffer(lines, np.uint8).reshape(height, -1), pixels_HW3)
    return pixels_HW3 if known else None


def _deflated(data: bytes) -> bytes:
    """What a PNG's IDAT chunks hold.

    Raises:
        ValueError, struct.error: where they do not lie together, are many, or more than a note is
            behind them.
    """
    parts: list[bytes] = []
    place, last, name = BEHIND_HEADER, b"", b""
    while name != b"IEND":
        last = name
        size, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + size
        if end + 4 > len(data):
            raise ValueError("truncated")
        if name == b"IDAT" and (last == name or not parts) and len(parts) < MOST_PARTS:
            parts.append(data[place + 8 : end])
        elif name in NOT_USUAL or (parts and name not in (*NO_PIXELS, b"IEND")):
            raise ValueError("for Pillow to judge")
        place = end + 4
    return parts[0] if len(parts) == 1 else b"".join(parts)


@compiled
def _unfilter(lines_HB: Any, pixels_HW3: Any) -> bool:
    """Add to each byte what its line's filter says; False for a filter that there is not."""
    height, width, _ = pixels_HW3.shape
    above = np.zeros(width * 3, np.uint8)
    for y in range(height):
        given, row = lines_HB[y, 1:], pixels_HW3[y].reshape(-1)
        kind = lines_HB[y, 0]
        if kind == 0:
            row[:] = given
        elif kind == 1:
            row[:3] = given[:3]
            for i in range(3, len(row)):
                row[i] = given[i] + row[i - 3]
        elif kind == 2:
            for i in range(len(row)):
                row[i] = given[i] + above[i]
        elif kind == 3:
            for i in range(3):
                row[i] = given[i] + (above[i] >> 1)
            for i in range(3, len(row)):
                row[i] = given[i] + ((np.int32(row[i - 3]) + np.int32(above[i])) >> 1)
        elif kind == 4:
            for i in range(3):
                row[i] = given[i] + above[i]
            for i in range(3, len(row)):
                row[i] = given[i] + _paeth(row[i - 3], above[i], above[i - 3])
        else:
            return False
        above = row
    return True


@compiled
def _paeth(left: Any, up: Any, corner: Any) -> Any:
    """Whichever of three neighbours is nearest to left + up - corner."""
    a, b, c = np.int32(left), np.int32(up), np.int32(corner)
    to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    if to_a <= to_b and to_a <= to_c:
        return left
    return up if to_b <= to_c else corner

"""Pillow's resize of RGB pictures in machine code: the same integers, and only what is kept.

Pillow weighs pixels with fixed-point weights of 22 bits, first along rows, then along columns, and
rounds to 8 bits after each (its `Resample.c`). The same sums are made here for the part of the
result that a crop keeps, with vector instructions: both passes run over adjacent bytes, because
strips of the picture are turned on their side for the first one.

H × W the picture, O the length of a side of what is kept, K most pixels weighed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import PIL
from numpy.typing import NDArray

WEIGHT_BITS = 22  # 32 less 8 of the pixel and 2 for sums that leave 0 to 255
STRIP_ROWS = 32  # a strip of a usual picture stays in the fastest cache
# Since version 13 Pillow begins with the columns where the height shrinks by far more pixels.
COLUMNS_MAY_BE_FIRST = int(PIL.__version__.split(".")[0]) >= 13

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom


def resized(pixels_HW3: Pixels, size: tuple[int, int], kept: Box, interpolation: str) -> Pixels:
    """The part `kept` of the picture resized to `size` (width, height); uint8."""
    height, width = pixels_HW3.shape[:2]
    left, top, right, bottom = kept
    if COLUMNS_MAY_BE_FIRST and height - size[1] > max(0, 2 * (width - size[0])):
        turned = _resized(
            pixels_HW3.swapaxes(0, 1), size[::-1], (top, left, bottom, right), interpolation
        )
        return np.ascontiguousarray(turned.swapaxes(0, 1))
    return _resized(pixels_HW3, size, kept, interpolation)


def _resized(pixels_HW3: Pixels, size: tuple[int, int], kept: Box, interpolation: str) -> Pixels:
    left, top, right, bottom = kept
    height, width = pixels_HW3.shape[:2]
    columns = _weights(width, size[0], left, right, interpolation)
    rows = _weights(height, size[1], top, bottom, interpolation)
    out = np.empty((bottom - top, (right - left) * 3), np.uint8)
    _both_passes(np.ascontiguousarray(pixels_HW3), *columns, *rows, out)
    return out.reshape(bottom - top, right - left, 3)


@lru_cache(maxsize=1024)
def _weights(
    side: int, new_side: int, first: int, last: int, interpolation: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """first_O and count_O of the pixels that make each new one, and their weights_OK."""
    reach, curve = {"bicubic": (2.0, _bicubic), "bilinear": (1.0, _bilinear)}[interpolation]
    scale = side / new_side
    widened = max(scale, 1.0)  # a smaller picture averages over more pixels: no aliasing
    centre_O = (np.arange(first, last) + 0.5) * scale
    first_O = np.maximum((centre_O - reach * widened + 0.5).astype(np.int64), 0)
    end_O = np.minimum((centre_O + reach * widened + 0.5).astype(np.int64), side)
    place_OK = first_O[:, None] + np.arange((end_O - first_O).max())
    weight_OK = curve(np.abs((place_OK - centre_O[:, None] + 0.5) / widened))
    weight_OK *= place_OK < end_O[:, None]
    weight_OK /= weight_OK.sum(axis=1, keepdims=True)
    fixed_OK = np.trunc(weight_OK * 2**WEIGHT_BITS + np.copysign(0.5, weight_OK))
    return first_O, end_O - first_O, fixed_OK.astype(np.int32)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' curve with a = -0.5, as Pillow has it."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - x, 0.0)


def compiled(function: Any) -> Any:
    """The function in machine code, kept on disk for the next process; other threads go on."""
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # there is no folder that it may write to: compiled anew in each process
        return numba.njit(function, nogil=True)


@compiled
def _both_passes(
    pixels_HW3: Any,
    column: Any,
    columns: Any,
    column_weights: Any,
    row: Any,
    rows: Any,
    row_weights: Any,
    out: Any,
) -> None:
    top, bottom = row[0], row[-1] + rows[-1]
    left, right = column[0], column[-1] + columns[-1]
    middle = np.empty((bottom - top, out.shape[1]), np.uint8)
    turned = np.empty((right - left, STRIP_ROWS * 3), np.uint8)
    narrow = np.empty((len(column), STRIP_ROWS * 3), np.uint8)
    for start in range(top, bottom, STRIP_ROWS):
        count = min(STRIP_ROWS, bottom - start)
        for x in range(right - left):
            for y in range(count):
                for c in range(3):
                    turned[x, y * 3 + c] = pixels_HW3[start + y, left + x, c]
        _weigh(turned, left, column, columns, column_weights, narrow)
        for y in range(count):
            for x in range(len(column)):
                for c in range(3):
                    middle[start - top + y, x * 3 + c] = narrow[x, y * 3 + c]
    _weigh(middle, top, row, rows, row_weights, out)


@compiled
def _weigh(lines: Any, offset: int, first: Any, count: Any, weights: Any, out: Any) -> None:
    """Each line of `out` is a weighted sum of neighbours; `lines` begins with number `offset`."""
    total = np.empty(lines.shape[1], np.int32)
    for o in range(len(first)):
        total[:] = 1 << (WEIGHT_BITS - 1)  # a half, so that cutting off rounds
        for k in range(count[o]):
            weight = weights[o, k]
            line = lines[first[o] - offset + k]
            for i in range(len(total)):
                total[i] += weight * np.int32(line[i])
        for i in range(len(total)):
            out[o, i] = min(max(total[i] >> WEIGHT_BITS, 0), 255)

"""How images of more than 8 bits become 8 bits: one rule for training, evaluation, prediction and check.

- With `data.value_range` = (low, high), `low` and what is below become 0, `high` and what is above 255.
- Without it, unsigned integers of b <= 16 bits (BitsPerSample in TIFF files, else the type) keep their upper 8 bits.
- Floats, signed integers and integers of 32 bits do not say which value is black and which is white: they need a
  value range. It is measured over the whole data set, never image by image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.errors import PixelRangeError

Range = tuple[float, float]

_NO_SCALE = "images whose type (float, signed or 32 bits) does not say which value is black and which is white"
_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # where the values of a camera usually end
_FROM_8_BITS = 257  # 255 becomes 65535


class Values(NamedTuple):
    """The least and the greatest value stored in images of more than 8 bits."""

    bits: int  # of unsigned integers; 0: the type does not say which value is white
    low: float
    high: float


class Stored(NamedTuple):
    """Decoded pixels before they become 8 bits."""

    pixels: np.ndarray  # (h, w, 3) uint8 RGB, or (h, w) numbers of any type
    bits: int  # as in `Values`; 8: nothing is to be done. Colors of 16 bits are there with their upper 8 only


def stored_numbers(pixels: np.ndarray, bits: int, kind: int, *, zero_is_white: bool) -> Stored:
    """Gray samples (h, w) as their file means them.

    bits, kind: TIFF's BitsPerSample and SampleFormat (1 unsigned, 2 signed, 3 float), which Pillow's type may not show.
    """
    if (kind, bits) == (2, 8):
        pixels = pixels.view(np.int8)
    elif (kind, bits) == (1, 32):
        pixels = pixels.view(np.uint32)
    known = kind == 1 and bits <= 16
    if zero_is_white:
        pixels = (2**bits - 1 if known else 0) - pixels.astype(np.float64)
    return Stored(pixels, bits if known else 0)


def to_8_bits(stored: Stored, value_range: Range | None) -> np.ndarray:
    """(h, w, 3) uint8 RGB by the rule. Raises PixelRangeError; what is not a number becomes 0."""
    pixels, bits = stored
    colors = pixels.ndim == 3
    if bits == 8 or (colors and value_range is None):
        return pixels
    if value_range is not None:
        low, high = value_range
        numbers = pixels.astype(np.float32) * (_FROM_8_BITS if colors else 1)
        scaled = (np.clip(numbers, low, high) - low) * (255 / (high - low))
        pixels = np.nan_to_num(scaled).round().astype(np.uint8)
    elif bits:
        pixels = np.clip(pixels.astype(np.int32) >> (bits - 8), 0, 255).astype(np.uint8)
    else:
        raise PixelRangeError(f"{_NO_SCALE}: set data.value_range; `mrcnn check` measures it")
    return pixels if colors else np.repeat(pixels[..., None], 3, axis=2)


def measure(stored: Stored) -> Values | None:
    """The range of the finite values; None where there are none, and for 8 bits."""
    pixels, bits = stored
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    if bits == 8 or not finite.size:
        return None
    factor = _FROM_8_BITS if pixels.ndim == 3 else 1
    return Values(bits, float(finite.min()) * factor, float(finite.max()) * factor)


def merge(found: Iterable[Values | None]) -> list[Values]:
    """The ranges of many images: one for each number of bits."""
    merged: dict[int, Values] = {}
    for values in found:
        if values is not None:
            before = merged.get(values.bits, values)
            merged[values.bits] = Values(values.bits, min(before.low, values.low), max(before.high, values.high))
    return [merged[bits] for bits in sorted(merged)]


def suggest(values: Sequence[Values]) -> Range:
    """A value range for images with all of these values: a usual scale if they use enough of it, else as measured."""
    low, high = min(v.low for v in values), max(v.high for v in values)
    scale = next((float(scale) for scale in _SCALES if high <= scale), None)
    if scale is not None and low >= 0 and _suits((0.0, scale), low, high):
        return 0.0, scale
    return (low, high) if low < high else (low, low + 1)


def refusal(values: Sequence[Values], value_range: Range | None) -> Refusal | None:
    """Why nothing can be trained on images with these values under this setting; None if it can."""
    unknown = [v for v in values if not v.bits]
    if value_range is not None or not unknown:
        return None
    culprit = f"they have values from {unknown[0].low:g} to {unknown[0].high:g}"
    return Refusal(_NO_SCALE, culprit, f"set data.value_range={suggest(values)}")


def warnings(values: Sequence[Values], value_range: Range | None) -> list[str]:
    """A line for images that become nearly black, white or flat, or are largely cut off, under this setting."""
    lines = []
    for v in values:
        scale = value_range if value_range is not None else (0.0, 2.0**v.bits - 1)
        if (value_range is not None or v.bits) and not _suits(scale, v.low, v.high):
            what = f"images of {v.bits} bits" if v.bits else "images of floats, signed or 32-bit integers"
            whose = "their type" if value_range is None else "data.value_range"
            lines.append(
                f"{what} have values from {v.low:g} to {v.high:g}; the range of {whose}, {scale}, does not suit them:"
                f" set data.value_range={suggest(values)}"
            )
    return lines


def _suits(scale: Range, low: float, high: float) -> bool:
    """Whether values from `low` to `high` use enough of `scale`, and are mostly within."""
    start, end = scale
    width = end - start
    dark, bright, flat = high < start + width / 4, low > end - width / 4, high - low < width / 8
    cut_off = low < start - width or high > end + width
    return not (dark or bright or flat or cut_off)

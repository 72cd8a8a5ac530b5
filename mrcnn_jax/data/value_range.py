"""Conversion of images of more than 8 bits to 8 bits, the same for training, evaluation, prediction and check.

- With `data.value_range` = (low, high), values are clipped to it, and mapped linearly to 0..255.
- Without it, unsigned integers of b <= 16 bits (BitsPerSample in TIFF files, else the type) keep their upper 8 bits.
- Floats, signed integers and integers of 32 bits need a value range, because their type does not define black and
  white. The range is measured over the whole dataset, never per image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.errors import PixelRangeError

Range = tuple[float, float]

_UNKNOWN_SCALE = "images whose type (float, signed or 32 bits) does not define which values are black and white"
_COMMON_MAXIMA = (1, 255, 1023, 4095, 16383, 65535)  # of cameras
_FROM_8_BITS = 257  # factor that maps 255 to 65535


class MeasuredRange(NamedTuple):
    """The least and the greatest value in images of more than 8 bits."""

    bits: int  # of unsigned integers; 0 for types that need a value range
    low: float
    high: float


class StoredPixels(NamedTuple):
    """Decoded pixels before the conversion to 8 bits."""

    pixels: np.ndarray  # (h, w, 3) uint8 RGB, or (h, w) numbers of any type
    bits: int  # as in `MeasuredRange`; 8 needs no conversion; of 16-bit RGB, `pixels` has the upper 8 bits only


def interpret_samples(pixels: np.ndarray, bits: int, kind: int, *, zero_is_white: bool) -> StoredPixels:
    """Return gray samples (h, w) with the type and sign that the file defines.

    bits, kind: TIFF's BitsPerSample and SampleFormat (1 unsigned, 2 signed, 3 float), which can differ from the type
    that Pillow returns. zero_is_white: TIFF's photometric interpretation.
    """
    if (kind, bits) == (2, 8):
        pixels = pixels.view(np.int8)
    elif (kind, bits) == (1, 32):
        pixels = pixels.view(np.uint32)
    known = kind == 1 and bits <= 16
    if zero_is_white:
        pixels = (2**bits - 1 if known else 0) - pixels.astype(np.float64)
    return StoredPixels(pixels, bits if known else 0)


def to_8_bits(stored: StoredPixels, value_range: Range | None) -> np.ndarray:
    """Convert to RGB (h, w, 3) uint8; NaN becomes 0. Raises PixelRangeError if a value range is needed and None."""
    pixels, bits = stored
    is_rgb = pixels.ndim == 3
    if bits == 8 or (is_rgb and value_range is None):
        return pixels
    if value_range is not None:
        low, high = value_range
        values = pixels.astype(np.float32) * (_FROM_8_BITS if is_rgb else 1)
        scaled = (np.clip(values, low, high) - low) * (255 / (high - low))
        pixels = np.nan_to_num(scaled).round().astype(np.uint8)
    elif bits:
        pixels = np.clip(pixels.astype(np.int32) >> (bits - 8), 0, 255).astype(np.uint8)
    else:
        raise PixelRangeError(f"{_UNKNOWN_SCALE}: set data.value_range; `mrcnn check` measures it")
    return pixels if is_rgb else np.repeat(pixels[..., None], 3, axis=2)


def measure_range(stored: StoredPixels) -> MeasuredRange | None:
    """Return the range of the finite values; None if there are none, and for 8 bits."""
    pixels, bits = stored
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    if bits == 8 or not finite.size:
        return None
    factor = _FROM_8_BITS if pixels.ndim == 3 else 1
    return MeasuredRange(bits, float(finite.min()) * factor, float(finite.max()) * factor)


def merge_ranges(ranges: Iterable[MeasuredRange | None]) -> list[MeasuredRange]:
    """Merge the ranges of many images into one for each number of bits."""
    merged: dict[int, MeasuredRange] = {}
    for new in ranges:
        if new is not None:
            old = merged.get(new.bits, new)
            merged[new.bits] = MeasuredRange(new.bits, min(old.low, new.low), max(old.high, new.high))
    return [merged[bits] for bits in sorted(merged)]


def suggest_range(values: Sequence[MeasuredRange]) -> Range:
    """Return a value range for images with these values: a common one if they use most of it, else the measured."""
    low, high = min(v.low for v in values), max(v.high for v in values)
    scale = next((float(scale) for scale in _COMMON_MAXIMA if high <= scale), None)
    if scale is not None and low >= 0 and _is_suitable((0.0, scale), low, high):
        return 0.0, scale
    return (low, high) if low < high else (low, low + 1)


def refusal(values: Sequence[MeasuredRange], value_range: Range | None) -> Refusal | None:
    """Return the refusal of images that need `data.value_range` if it is None, else None."""
    unknown = [v for v in values if not v.bits]
    if value_range is not None or not unknown:
        return None
    item = f"their values are from {unknown[0].low:g} to {unknown[0].high:g}"
    return Refusal(_UNKNOWN_SCALE, item, f"set data.value_range={suggest_range(values)}")


def warnings(values: Sequence[MeasuredRange], value_range: Range | None) -> list[str]:
    """Return a line for images that the conversion would make nearly black, white or flat, or mostly clip."""
    lines = []
    for v in values:
        scale = value_range if value_range is not None else (0.0, 2.0**v.bits - 1)
        if (value_range is not None or v.bits) and not _is_suitable(scale, v.low, v.high):
            kind = f"images of {v.bits} bits" if v.bits else "images of floats, signed or 32-bit integers"
            source = "their type" if value_range is None else "data.value_range"
            lines.append(
                f"{kind} have values from {v.low:g} to {v.high:g}; the range {scale} of {source} does not suit them;"
                f" set data.value_range={suggest_range(values)}"
            )
    return lines


def _is_suitable(scale: Range, low: float, high: float) -> bool:
    """Whether values from `low` to `high` use enough of the range `scale`, and mostly lie in it."""
    start, end = scale
    width = end - start
    dark, bright, flat = high < start + width / 4, low > end - width / 4, high - low < width / 8
    clipped = low < start - width or high > end + width
    return not (dark or bright or flat or clipped)

"""Decoding of image files to RGB, and their validation against the annotation file.

JPEG files are decoded with OpenCV, which is fastest, other formats with Pillow, which detects truncated files. OpenCV
fills the missing part of a truncated JPEG file with gray, so its end marker is checked first.

Images of more than 8 bits are converted to 8 bits as `value_range` describes.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mrcnn_jax.data import file_names
from mrcnn_jax.data import image_formats as formats
from mrcnn_jax.data import value_range as ranges
from mrcnn_jax.data.annotations import ImageEntry, size_limit_refusal
from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.image_formats import FORMATS, JPEG, MAX_PIXELS, orientation
from mrcnn_jax.data.value_range import MeasuredRange, Range, StoredPixels
from mrcnn_jax.errors import format_value
from mrcnn_jax.runtime.threads import map_on_threads

_IMREAD_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_MISSING_ADVICE = "add the files, or remove the images from the JSON"
_FLIP_CODES = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # for cv2.flip by EXIF orientation, after a transposition from 5
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_FLOAT = 3  # TIFF sample format
_FEW_VALUES = 8  # images with at most this many distinct values get a warning


class ImageCheck(NamedTuple):
    """The result of checking an image file."""

    refusal: Refusal | None = None
    values: MeasuredRange | None = None  # None for 8 bits
    warnings: tuple[Refusal, ...] = ()  # these do not stop training


def decode(content: bytes, reduction: int = 1, value_range: Range | None = None) -> np.ndarray | None:
    """Decode an image file to RGB pixels (h, w, 3) uint8; None if it is truncated or cannot be decoded.

    Rotated according to EXIF, or XMP if EXIF has no orientation; transparency is ignored. Of several frames (pages of a
    TIFF file, an animated GIF) the first is decoded.

    Args:
      content: the bytes of the file.
      reduction: 1, 2, 4 or 8; height and width are divided by it and rounded up. JPEG files are decoded at this size,
        which is faster.
      value_range: `data.value_range`. Images that need one (see `value_range`) are not decoded without it.
    """
    try:
        if content.startswith(JPEG):
            stream = io.BytesIO(content)
            header = JpegImageFile(stream)  # reads up to the first scan
            # There, 0xFF 0xD9 is the end marker only. Before it, the end of a preview can have these bytes.
            if content.rfind(b"\xff\xd9", stream.tell()) < 0 or header.height * header.width > MAX_PIXELS:
                return None
            if header.mode != "CMYK":  # CMYK needs Pillow, which handles Adobe's inverted values
                return _decode_jpeg(content, reduction, orientation(header))
        pixels = ranges.to_8_bits(_decode_with_pillow(content), value_range)
    except Exception:  # Pillow's readers raise many types: OSError, SyntaxError, struct.error, ...
        return None
    return pixels if reduction == 1 else _downscale(pixels, reduction)


def explain_decode_failure(content: bytes, value_range: Range | None = None) -> str:
    """Return why `decode` returns None for this file."""
    try:
        ranges.to_8_bits(_decode_strictly(content), value_range)
    except Exception as error:  # see `decode`
        return formats.describe_error(content, error)
    return formats.DAMAGED


def check_image(content: bytes, image: ImageEntry) -> ImageCheck:
    """Check that an image file can be decoded completely and has the size given in the JSON.

    Stricter than `decode` with damaged JPEG files: those that Pillow cannot decode to the end are refused too.
    """
    try:
        stored = _decode_strictly(content)
    except Image.DecompressionBombError:
        return ImageCheck(size_limit_refusal(image.label, image.id))
    except Exception as error:  # see `decode`
        return ImageCheck(_unreadable_refusal(image, formats.describe_error(content, error)))
    if stored.pixels.shape[:2] != (image.height, image.width):
        return ImageCheck(_size_refusal(image, stored.pixels.shape[:2], content))
    return ImageCheck(None, ranges.measure_range(stored), tuple(_warnings(image, stored, _count_frames(content))))


def check_images(folder: Path, images: Sequence[ImageEntry]) -> Iterator[ImageCheck]:
    """Read and check every image, see `check_image`; return an iterator of the results, in order.

    Threads read a few files ahead, and only those are in memory.
    """
    threads = min(8, os.cpu_count() or 1)
    return map_on_threads(functools.partial(_read_and_check, folder), images, threads, ahead=threads)


def collect_refusals(checks: Sequence[ImageCheck]) -> list[Refusal]:
    """Return the refusals of a dataset's images; if all are missing, the advice is to correct the folder."""
    refusals = [check.refusal for check in checks if check.refusal is not None]
    if len(refusals) < len(checks) or any(refusal.advice != _MISSING_ADVICE for refusal in refusals):
        return refusals
    advice = (
        "this folder has none of the images: correct data.root with data.train.images or data.eval.images, or --images"
    )
    return [refusal._replace(advice=advice) for refusal in refusals]


def _read_and_check(folder: Path, image: ImageEntry) -> ImageCheck:
    try:
        content = (folder / image.file_name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ImageCheck(_missing_refusal(folder, image))
    except OSError as error:
        return ImageCheck(_unreadable_refusal(image, error.strerror or str(error)))
    return check_image(content, image)


def _missing_refusal(folder: Path, image: ImageEntry) -> Refusal:
    kind, hint = f"images that are not in {folder}", file_names.describe_similar(folder, image.file_name)
    if hint is None:
        return Refusal(kind, image.label, _MISSING_ADVICE, image.id)
    item = f"{format_value(image.file_name)} (id {image.id}; {hint})"
    return Refusal(kind, item, "make file_name equal to the names of the files", image.id)


def _unreadable_refusal(image: ImageEntry, reason: str) -> Refusal:
    advice = "replace the files, or remove the images from the JSON"
    return Refusal("image files that cannot be read", f"{image.label}: {reason}", advice, image.id)


def _size_refusal(image: ImageEntry, size: tuple[int, ...], content: bytes) -> Refusal:
    advice = "correct height and width in the JSON"
    if size == (image.width, image.height) and _swaps_axes(content):
        advice = (
            "the JSON has the size before the rotation by EXIF or XMP: remove the orientation from the files if the"
            " annotations fit the images before the rotation, else correct height and width in the JSON"
        )
    kind = "images whose size (height x width) differs from the JSON"
    item = f"{image.label} is {size[0]}x{size[1]}, not {image.height}x{image.width}"
    return Refusal(kind, item, advice, image.id)


def _swaps_axes(content: bytes) -> bool:
    """Whether the orientation of a decodable file swaps height and width."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return orientation(image) >= 5


def _count_frames(content: bytes) -> int:
    """Return the number of frames of a decodable file; 1 for JPEG, where further frames are previews."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return 1 if content.startswith(JPEG) else getattr(image, "n_frames", 1)
    except Exception:  # a later frame is damaged
        return 1


def _decode_jpeg(content: bytes, reduction: int, turn: int) -> np.ndarray | None:
    # OpenCV ignores the orientation in XMP, so the image is rotated here.
    flags = _IMREAD_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return None if bgr is None else _turn_upright(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), turn)


def _turn_upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Apply an EXIF orientation 1..8 to stored pixels."""
    if turn >= 5:
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, _FLIP_CODES[turn]) if turn in _FLIP_CODES else pixels


def _decode_with_pillow(content: bytes) -> StoredPixels:
    """Decode with Pillow, which handles all color modes. Raises exceptions of any type."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        turn = orientation(image)
        tags = getattr(image, "tag_v2", {})
        bits, kind = tags.get(_BITS_PER_SAMPLE, (8,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
        if image.mode == "F":  # also in formats other than TIFF
            kind = _FLOAT
        if image.mode[0] in "IF" or (image.mode == "L" and kind == 2):
            pixels = _turn_upright(np.asarray(image), turn)
            white = tags.get(_PHOTOMETRIC) == 0  # Pillow inverts only images of 8 bits
            return ranges.interpret_samples(pixels, bits if tags else 16, kind, zero_is_white=white)
        image.info.pop("transparency", None)  # avoids a warning of Pillow
        deep = bits == 16 or (image.format == "PNG" and content[24] == 16)
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
        return StoredPixels(_turn_upright(pixels, turn), 16 if deep else 8)


def _warnings(image: ImageEntry, stored: StoredPixels, frames: int) -> Iterator[Refusal]:
    if frames > 1:
        kind, advice = "image files with several frames, of which the first is used", "write one file for each frame"
        yield Refusal(kind, f"{image.label} has {frames}", advice, image.id)
    values = stored.pixels.ravel()
    subset = values[:: 1 + len(values) // 4096]  # enough for most images, and fast
    if len(np.unique(subset)) <= _FEW_VALUES and (count := len(np.unique(values))) <= _FEW_VALUES:
        kind = f"images with at most {_FEW_VALUES} distinct values"
        yield Refusal(kind, f"{image.label} has {count}", "check that these are images and not masks", image.id)


def _decode_strictly(content: bytes) -> StoredPixels:
    """Decode without conversion to 8 bits; raises exceptions of any type if Pillow cannot decode the whole file."""
    if not content.startswith(JPEG):
        return _decode_with_pillow(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        # Decoding at a reduced size is faster, and still reads the whole file.
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
    pixels = decode(content)
    if pixels is None:
        raise ValueError(formats.DAMAGED)
    return StoredPixels(pixels, 8)


def _downscale(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """Average squares of `reduction` x `reduction` pixels; the last row and column are repeated to fill squares."""
    height, width = pixels.shape[:2]
    padded = cv2.copyMakeBorder(pixels, 0, -height % reduction, 0, -width % reduction, cv2.BORDER_REPLICATE)
    size = (padded.shape[1] // reduction, padded.shape[0] // reduction)
    return cv2.resize(padded, size, interpolation=cv2.INTER_AREA)

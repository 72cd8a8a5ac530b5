"""Decoding of image files to RGB, and their validation against the annotation file.

JPEG files are decoded with OpenCV, which is fastest, other formats with Pillow, which detects truncated files. OpenCV
fills the missing part of a truncated JPEG file with gray, so its end marker is checked first.

Images of more than 8 bits are converted to 8 bits as `value_range` describes.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mrcnn_jax.data import file_names
from mrcnn_jax.data import image_formats as formats
from mrcnn_jax.data import value_range as ranges
from mrcnn_jax.data.annotations import ImageEntry, size_limit_refusal
from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.image_formats import FORMATS, JPEG, MAX_PIXELS, UPRIGHT, orientation
from mrcnn_jax.data.value_range import MeasuredRange, Range, StoredPixels
from mrcnn_jax.errors import format_value

_IMREAD_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_MISSING_ADVICE = "add the files, or remove the images from the JSON"
_UPRIGHT_OPENCV: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by EXIF orientation, as `UPRIGHT`
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_FLOAT = 3  # TIFF sample format
_FEW_VALUES = 8  # images with at most this many distinct values get a warning


class ImageCheck(NamedTuple):
    """The result of checking an image file."""

    refusal: Refusal | None = None
    values: MeasuredRange | None = None  # None for 8 bits
    warnings: tuple[Refusal, ...] = ()  # these do not stop training


class _JpegHeader(NamedTuple):
    """Size and number of color components of a JPEG file, and whether its end marker is present."""

    height: int
    width: int
    components: int
    complete: bool


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
    if content.startswith(JPEG):
        header = _read_jpeg_header(content)
        if header is None or not header.complete or header.height * header.width > MAX_PIXELS:
            return None
        if header.components != 4:  # CMYK needs Pillow, which handles Adobe's inverted values
            return _decode_jpeg(content, reduction)
    try:
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
    name = f"{format_value(image.file_name)} (id {image.id})"
    try:
        stored = _decode_strictly(content)
    except Image.DecompressionBombError:
        return ImageCheck(size_limit_refusal(name, image.id))
    except Exception as error:  # see `decode`
        return ImageCheck(_unreadable_refusal(name, formats.describe_error(content, error), image.id))
    size = stored.pixels.shape[:2]
    if size != (image.height, image.width):
        return ImageCheck(_size_refusal(name, size, content, image))
    return ImageCheck(
        None, ranges.measure_range(stored), tuple(_warnings(name, image.id, stored, _count_frames(content)))
    )


def check_images(folder: Path, images: Sequence[ImageEntry]) -> Iterator[ImageCheck]:
    """Read and check every image, see `check_image`; yields one result for each, in order.

    Threads read a few files ahead, and only those are in memory.
    """
    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[ImageCheck]] = deque()
    try:
        for image in images:
            pending.append(pool.submit(_read_and_check, folder, image))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also if the generator is closed early
        pool.shutdown(cancel_futures=True)


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
        return ImageCheck(_missing_refusal(folder, image.file_name, image.id))
    except OSError as error:
        name = f"{format_value(image.file_name)} (id {image.id})"
        return ImageCheck(_unreadable_refusal(name, error.strerror or str(error), image.id))
    return check_image(content, image)


def _missing_refusal(folder: Path, name: str, image_id: int) -> Refusal:
    hint = file_names.describe_similar(folder, name)
    item = f"{format_value(name)} (id {image_id}{f'; {hint}' if hint else ''})"
    advice = _MISSING_ADVICE if hint is None else "make file_name equal to the names of the files"
    return Refusal(f"images that are not in {folder}", item, advice, image_id)


def _unreadable_refusal(name: str, reason: str, image_id: int) -> Refusal:
    advice = "replace the files, or remove the images from the JSON"
    return Refusal("image files that cannot be read", f"{name}: {reason}", advice, image_id)


def _size_refusal(name: str, size: tuple[int, ...], content: bytes, image: ImageEntry) -> Refusal:
    advice = "correct height and width in the JSON"
    if size == (image.width, image.height) and _swaps_axes(content):
        advice = (
            "the JSON has the size before the rotation by EXIF or XMP: remove the orientation from the files if the"
            " annotations fit the images before the rotation, else correct height and width in the JSON"
        )
    return Refusal(
        "images whose size (height x width) differs from the JSON",
        f"{name} is {size[0]}x{size[1]}, not {image.height}x{image.width}",
        advice,
        image.id,
    )


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


def _read_jpeg_header(content: bytes) -> _JpegHeader | None:
    """Parse the segments of a JPEG file up to its first scan; None if it has no scan, or no frame before it."""
    size = None
    position = content.find(b"\xff", 2)
    while 0 <= position < len(content) - 9:
        marker = content[position + 1]
        if marker == 0xDA:  # start of scan
            # After it, 0xFF 0xD9 is the end marker only. Before it, the end of a preview can have these bytes.
            return size and _JpegHeader(*size, complete=content.rfind(b"\xff\xd9", position) > 0)
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # markers without a length
            position = content.find(b"\xff", position + (1 if marker == 0xFF else 2))
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            fields = content[position + 5 : position + 10]
            size = (int.from_bytes(fields[:2], "big"), int.from_bytes(fields[2:4], "big"), fields[4])
        position = content.find(b"\xff", position + 2 + int.from_bytes(content[position + 2 : position + 4], "big"))
    return None


def _decode_jpeg(content: bytes, reduction: int) -> np.ndarray | None:
    try:
        # OpenCV ignores the orientation in XMP, so the image is rotated below.
        flags = _IMREAD_FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    if bgr is None:
        return None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    turn = _jpeg_orientation(content)
    return rgb if turn == 1 else _UPRIGHT_OPENCV[turn](rgb)


def _jpeg_orientation(content: bytes) -> int:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return orientation(image)
    except Exception:  # a file that OpenCV can read and Pillow cannot
        return 1


def _decode_with_pillow(content: bytes) -> StoredPixels:
    """Decode with Pillow, which handles all color modes. Raises exceptions of any type."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        turn = orientation(image)
        upright = image.transpose(UPRIGHT[turn]) if turn > 1 else image
        tags = getattr(image, "tag_v2", {})
        bits, kind = tags.get(_BITS_PER_SAMPLE, (8,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
        if image.mode == "F":  # also in formats other than TIFF
            kind = _FLOAT
        if image.mode[0] in "IF" or (image.mode == "L" and kind == 2):
            white = tags.get(_PHOTOMETRIC) == 0  # Pillow inverts only images of 8 bits
            return ranges.interpret_samples(np.asarray(upright), bits if tags else 16, kind, zero_is_white=white)
        upright.info.pop("transparency", None)  # avoids a warning of Pillow
        deep = bits == 16 or (image.format == "PNG" and content[24] == 16)
        return StoredPixels(np.array(upright if upright.mode == "RGB" else upright.convert("RGB")), 16 if deep else 8)


def _warnings(name: str, image_id: int, stored: StoredPixels, frames: int) -> Iterator[Refusal]:
    if frames > 1:
        kind, advice = "image files with several frames, of which the first is used", "write one file for each frame"
        yield Refusal(kind, f"{name} has {frames}", advice, image_id)
    values = stored.pixels.ravel()
    subset = values[:: 1 + len(values) // 4096]  # enough for most images, and fast
    if len(np.unique(subset)) <= _FEW_VALUES and (count := len(np.unique(values))) <= _FEW_VALUES:
        kind = f"images with at most {_FEW_VALUES} distinct values"
        yield Refusal(kind, f"{name} has {count}", "check that these are images and not masks", image_id)


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

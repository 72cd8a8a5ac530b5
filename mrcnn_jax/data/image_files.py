"""Encoded image files: their pixels as a viewer shows them, and whether they are what the JSON says.

JPEG files are decoded by OpenCV, which is the fastest, everything else by Pillow, which notices whatever is missing.
Of JPEG files OpenCV fills up with grey what is missing: before, the end of the picture is looked for.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mrcnn_jax.data.annotations import MOST_PIXELS, ImageEntry, too_large
from mrcnn_jax.data.errors import shown
from mrcnn_jax.data.findings import Refusal

_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # no others: one runs PostScript
_JPEG = b"\xff\xd8\xff"  # how such files begin
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_ADD = "add them, or take them out of the JSON"  # of images that are missing
_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {  # what to do with the stored pixels, by orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Frame(NamedTuple):
    """What a JPEG file says of itself."""

    height: int
    width: int
    components: int
    whole: bool  # the end of the picture is there


def decode(content: bytes, reduction: int = 1) -> np.ndarray | None:
    """Pixels (h, w, 3) uint8 RGB of an encoded file as a viewer shows them; None if it is cut off or cannot be decoded.

    EXIF rotation is applied, transparency ignored, and 16 bits a channel become 8. Of a film, the first picture.
    reduction: 1, 2, 4 or 8; height and width are the file's divided by it, rounded up. A JPEG file is decoded to that
    size, without the finer coefficients of its blocks, which is what takes the time.
    """
    if content.startswith(_JPEG):
        frame = _read_frame(content)
        if frame is None or not frame.whole or frame.height * frame.width > MOST_PIXELS:
            return None
        if frame.components != 4:  # CMYK is for Pillow, which knows that Adobe stores it inverted
            return _decode_jpeg(content, reduction)
    try:
        pixels = _decode_any(content)
    except Exception:  # Pillow raises whatever its readers stumble over: OSError, SyntaxError, struct.error, ...
        return None
    return pixels if reduction == 1 else _average(pixels, reduction)


def judge(content: bytes, image: ImageEntry) -> Refusal | None:
    """Why an image file cannot be used as the image that the JSON describes; None if it can.

    Stricter than `decode` with broken JPEG files: what Pillow cannot decode to the end is refused, too.
    """
    name = f"{shown(image.file_name)} (id {image.id})"
    try:
        pixels = _decode_strictly(content)
    except Image.DecompressionBombError:
        return too_large(name, image.id)
    except Exception as error:  # see `decode`
        return _unreadable(name, _reason(content, error), image.id)
    if pixels is None:
        return _unreadable(name, "it is cut off or broken", image.id)
    size = pixels.shape[:2]
    return None if size == (image.height, image.width) else _other_size(name, size, content, image)


def examine(folder: Path, images: Sequence[ImageEntry]) -> Iterator[Refusal | None]:
    """Read and fully decode every image: one result each, in their order, as `judge` has it.

    A few files are read ahead in threads, and no more than these are in memory.
    """
    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Refusal | None]] = deque()
    try:
        for image in images:
            pending.append(pool.submit(_read_and_judge, folder, image))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when nobody wants the rest
        pool.shutdown(cancel_futures=True)


def refusals(examined: Sequence[Refusal | None]) -> list[Refusal]:
    """What `examine` refused of a data set; where every image is missing, the advice is to give another folder."""
    found = [refusal for refusal in examined if refusal is not None]
    if len(found) < len(examined) or any(refusal.advice != _ADD for refusal in found):
        return found
    advice = "it has none of the images: give their folder as data.root and data.train/eval.images, or as --images"
    return [refusal._replace(advice=advice) for refusal in found]


def _read_and_judge(folder: Path, image: ImageEntry) -> Refusal | None:
    try:
        content = (folder / image.file_name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return _absent(folder, image.file_name, image.id)
    except OSError as error:
        return _unreadable(f"{shown(image.file_name)} (id {image.id})", error.strerror or str(error), image.id)
    return judge(content, image)


def _absent(folder: Path, name: str, image_id: int) -> Refusal:
    return Refusal(f"images that are not in {folder}", f"{shown(name)} (id {image_id})", _ADD, image_id)


def _unreadable(name: str, reason: str, image_id: int) -> Refusal:
    advice = "replace the files, or take the images out of the JSON"
    return Refusal("image files that cannot be read", f"{name}: {reason}", advice, image_id)


def _reason(content: bytes, error: Exception) -> str:
    if not content:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_FORMATS)}"
    return shown(str(error) or type(error).__name__)


def _other_size(name: str, size: tuple[int, ...], content: bytes, image: ImageEntry) -> Refusal:
    advice = "correct height and width there"
    if size == (image.width, image.height) and _turns(content):
        advice = (
            "there they are as stored, and their EXIF orientation turns the pictures: take it out of the files if the"
            " annotations fit the pictures as stored, else correct height and width"
        )
    return Refusal(
        "images whose size (height x width) disagrees with the JSON",
        f"{name} is {size[0]}x{size[1]}, not {image.height}x{image.width}",
        advice,
        image.id,
    )


def _turns(content: bytes) -> bool:
    """Whether the EXIF orientation of a file that can be decoded swaps its axes."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return _orientation(image) >= 5


def _orientation(image: Image.Image) -> int:
    """1..8, by EXIF; 1 for what is unreadable, which viewers do not mind."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # see `decode`
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _read_frame(content: bytes) -> _Frame | None:
    """Walk over the segments of a JPEG file up to its first scan; None if there is none, or no frame before it."""
    size = None
    place = content.find(b"\xff", 2)
    while 0 <= place < len(content) - 9:
        marker = content[place + 1]
        if marker == 0xDA:
            # Within the scans no other 0xFF stands before 0xD9. (Before them it may: previews are JPEG files.)
            return size and _Frame(*size, whole=content.rfind(b"\xff\xd9", place) > 0)
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # not followed by a length
            place = content.find(b"\xff", place + (1 if marker == 0xFF else 2))
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            numbers = content[place + 5 : place + 10]
            size = (int.from_bytes(numbers[:2], "big"), int.from_bytes(numbers[2:4], "big"), numbers[4])
        place = content.find(b"\xff", place + 2 + int.from_bytes(content[place + 2 : place + 4], "big"))
    return None


def _decode_jpeg(content: bytes, reduction: int) -> np.ndarray | None:
    try:
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[reduction])
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _decode_any(content: bytes) -> np.ndarray:
    """By Pillow, which knows every kind of colour. Raises anything."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.load()
        orientation = _orientation(image)
        upright = image.transpose(_UPRIGHT[orientation]) if orientation > 1 else image
        if upright.mode.startswith("I"):  # 16 bits, of which Pillow would keep the lower 8
            grey = np.clip(np.asarray(upright), 0, 0xFFFF) >> 8
            return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
        upright.info.pop("transparency", None)  # Pillow warns of it
        return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _decode_strictly(content: bytes) -> np.ndarray | None:
    """As `decode`; raises, anything, for a file that Pillow cannot decode to its end."""
    if not content.startswith(_JPEG):
        return _decode_any(content)
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))  # every bit is read all the same
        image.load()
    return decode(content)


def _average(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """Means over squares of `reduction` pixels; the last row and column are repeated to fill them."""
    height, width = pixels.shape[:2]
    below, right = -height % reduction, -width % reduction
    filled = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = (filled.shape[1] // reduction, filled.shape[0] // reduction)
    return cv2.resize(filled, size, interpolation=cv2.INTER_AREA)

"""Encoded image files: their pixels as a viewer shows them, and whether they are what the JSON says.

JPEG files are decoded by OpenCV, which is the fastest, everything else by Pillow, which notices whatever is missing.
Of JPEG files OpenCV fills up with gray what is missing: before, the end of the picture is looked for.

Images of more than 8 bits become 8 bits by the rule of `value_range`.
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
from mrcnn_jax.data.annotations import ImageEntry, too_large
from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.image_formats import FORMATS, JPEG, MOST_PIXELS, UPRIGHT, orientation
from mrcnn_jax.data.value_range import Range, Stored, Values
from mrcnn_jax.errors import shown

_REDUCED = {  # in which OpenCV turns nothing: it knows EXIF alone
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_ADD = "add them, or take them out of the JSON"  # of images that are missing
_TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by orientation, as `UPRIGHT`
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_FLOAT = 3  # a sample format
_FEW = 8  # an image of no more distinct values is named by check


class Examined(NamedTuple):
    """What was found out about an image file."""

    refusal: Refusal | None = None
    values: Values | None = None  # None: 8 bits
    warnings: tuple[Refusal, ...] = ()  # what training does not mind


class _Frame(NamedTuple):
    """What a JPEG file says of itself."""

    height: int
    width: int
    components: int
    whole: bool  # the end of the picture is there


def decode(content: bytes, reduction: int = 1, value_range: Range | None = None) -> np.ndarray | None:
    """Pixels (h, w, 3) uint8 RGB of an encoded file as a viewer shows them; None if it is cut off or cannot be decoded.

    Turned as EXIF says, or XMP where EXIF says nothing; transparency is ignored. Of several pictures (pages of a TIFF
    file, an animated GIF), the first.
    reduction: 1, 2, 4 or 8; height and width are the file's divided by it, rounded up. A JPEG file is decoded to that
    size, without the finer coefficients of its blocks, which is what takes the time.
    value_range: `data.value_range`; without it, None for an image that needs one, see `value_range`.
    """
    if content.startswith(JPEG):
        frame = _read_frame(content)
        if frame is None or not frame.whole or frame.height * frame.width > MOST_PIXELS:
            return None
        if frame.components != 4:  # CMYK is for Pillow, which knows that Adobe stores it inverted
            return _decode_jpeg(content, reduction)
    try:
        pixels = ranges.to_8_bits(_decode_any(content), value_range)
    except Exception:  # Pillow raises whatever its readers stumble over: OSError, SyntaxError, struct.error, ...
        return None
    return pixels if reduction == 1 else _average(pixels, reduction)


def explain(content: bytes, value_range: Range | None = None) -> str:
    """Why `decode` returns None for this file."""
    try:
        ranges.to_8_bits(_decode_strictly(content), value_range)
    except Exception as error:  # see `decode`
        return formats.reason(content, error)
    return "it is cut off or broken"


def validate_image(content: bytes, image: ImageEntry) -> Examined:
    """Whether an image file can be used as the image that the JSON describes.

    Stricter than `decode` with broken JPEG files: what Pillow cannot decode to the end is refused, too.
    """
    name = f"{shown(image.file_name)} (id {image.id})"
    try:
        stored = _decode_strictly(content)
    except Image.DecompressionBombError:
        return Examined(too_large(name, image.id))
    except Exception as error:  # see `decode`
        return Examined(_unreadable(name, formats.reason(content, error), image.id))
    size = stored.pixels.shape[:2]
    if size != (image.height, image.width):
        return Examined(_other_size(name, size, content, image))
    return Examined(None, ranges.measure(stored), tuple(_warnings(name, image.id, stored, _pictures(content))))


def examine(folder: Path, images: Sequence[ImageEntry]) -> Iterator[Examined]:
    """Read and fully decode every image: one result each, in their order, as `validate_image` has it.

    A few files are read ahead in threads, and no more than these are in memory.
    """
    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[Examined]] = deque()
    try:
        for image in images:
            pending.append(pool.submit(_read_and_judge, folder, image))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when nobody wants the rest
        pool.shutdown(cancel_futures=True)


def refusals(examined: Sequence[Examined]) -> list[Refusal]:
    """What `examine` refused of a data set; where every image is missing, the advice is to give another folder."""
    found = [one.refusal for one in examined if one.refusal is not None]
    if len(found) < len(examined) or any(refusal.advice != _ADD for refusal in found):
        return found
    advice = "it has none of the images: give their folder as data.root and data.train/eval.images, or as --images"
    return [refusal._replace(advice=advice) for refusal in found]


def _read_and_judge(folder: Path, image: ImageEntry) -> Examined:
    try:
        content = (folder / image.file_name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Examined(_absent(folder, image.file_name, image.id))
    except OSError as error:
        name = f"{shown(image.file_name)} (id {image.id})"
        return Examined(_unreadable(name, error.strerror or str(error), image.id))
    return validate_image(content, image)


def _absent(folder: Path, name: str, image_id: int) -> Refusal:
    hint = file_names.near(folder, name)
    culprit = f"{shown(name)} (id {image_id}{f'; {hint}' if hint else ''})"
    advice = _ADD if hint is None else "write the names that the files have"
    return Refusal(f"images that are not in {folder}", culprit, advice, image_id)


def _unreadable(name: str, reason: str, image_id: int) -> Refusal:
    advice = "replace the files, or take the images out of the JSON"
    return Refusal("image files that cannot be read", f"{name}: {reason}", advice, image_id)


def _other_size(name: str, size: tuple[int, ...], content: bytes, image: ImageEntry) -> Refusal:
    advice = "correct height and width there"
    if size == (image.width, image.height) and _turns(content):
        advice = (
            "there they are as stored, and their orientation (EXIF, XMP) turns the pictures: take it out of the files"
            " if the annotations fit the pictures as stored, else correct height and width"
        )
    return Refusal(
        "images whose size (height x width) disagrees with the JSON",
        f"{name} is {size[0]}x{size[1]}, not {image.height}x{image.width}",
        advice,
        image.id,
    )


def _turns(content: bytes) -> bool:
    """Whether the orientation of a file that can be decoded swaps its axes."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return orientation(image) >= 5


def _pictures(content: bytes) -> int:
    """How many pictures a file has that can be decoded; 1 for JPEG, whose others are previews and the like."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return 1 if content.startswith(JPEG) else getattr(image, "n_frames", 1)
    except Exception:  # of damaged ones after the first
        return 1


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
        flags = _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        bgr = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    if bgr is None:
        return None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    turn = _jpeg_orientation(content)
    return rgb if turn == 1 else _TURNED[turn](rgb)


def _jpeg_orientation(content: bytes) -> int:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return orientation(image)
    except Exception:  # OpenCV reads what Pillow does not
        return 1


def _decode_any(content: bytes) -> Stored:
    """By Pillow, which knows every kind of color. Raises anything."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        turn = orientation(image)
        upright = image.transpose(UPRIGHT[turn]) if turn > 1 else image
        tags = getattr(image, "tag_v2", {})
        bits, kind = tags.get(_BITS_PER_SAMPLE, (8,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
        if image.mode == "F":  # also of other files than TIFF
            kind = _FLOAT
        if image.mode[0] in "IF" or (image.mode == "L" and kind == 2):
            white = tags.get(_PHOTOMETRIC) == 0  # Pillow turns around 8 bits only
            return ranges.stored_numbers(np.asarray(upright), bits if tags else 16, kind, zero_is_white=white)
        upright.info.pop("transparency", None)  # Pillow warns of it
        deep = bits == 16 or (image.format == "PNG" and content[24] == 16)
        return Stored(np.array(upright if upright.mode == "RGB" else upright.convert("RGB")), 16 if deep else 8)


def _warnings(name: str, image_id: int, stored: Stored, pictures: int) -> Iterator[Refusal]:
    if pictures > 1:
        kind, advice = "image files of several pictures, of which the first is used", "write one file for each picture"
        yield Refusal(kind, f"{name} has {pictures}", advice, image_id)
    values = stored.pixels.ravel()
    some = values[:: 1 + len(values) // 4096]  # enough of most images, and quick
    if len(np.unique(some)) <= _FEW and (count := len(np.unique(values))) <= _FEW:
        kind = f"images of no more than {_FEW} distinct values"
        yield Refusal(kind, f"{name}: {count}", "look whether they are what they should be", image_id)


def _decode_strictly(content: bytes) -> Stored:
    """As `decode`, before it becomes 8 bits; raises, anything, for a file that Pillow cannot decode to its end."""
    if not content.startswith(JPEG):
        return _decode_any(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))  # every bit is read all the same
        image.load()
    pixels = decode(content)
    if pixels is None:
        raise ValueError("it is cut off or broken")
    return Stored(pixels, 8)


def _average(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """Means over squares of `reduction` pixels; the last row and column are repeated to fill them."""
    height, width = pixels.shape[:2]
    below, right = -height % reduction, -width % reduction
    filled = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = (filled.shape[1] // reduction, filled.shape[0] // reduction)
    return cv2.resize(filled, size, interpolation=cv2.INTER_AREA)

"""Encoded image files: their pixels as a viewer shows them, and whether they are what the JSON says."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image

from mrcnn_jax.data.errors import shown
from mrcnn_jax.data.findings import Refusal

# More than this Pillow takes for an attempt to fill the memory, and refuses to decode. OpenCV's own bound is higher.
MOST_PIXELS = 2 * 89_478_485
TOO_LARGE_ADVICE = "cut them into tiles, or scale them down"

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
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


class Described(Protocol):
    """What the JSON says of an image."""

    @property
    def id(self) -> int: ...
    @property
    def file_name(self) -> str: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


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
    if content[:3] == b"\xff\xd8\xff":
        frame = _read_frame(content)
        if frame is None or not frame.whole or frame.height * frame.width > MOST_PIXELS:
            return None  # OpenCV would fill up with grey what is missing
        if frame.components != 4:  # CMYK is for Pillow, which knows that Adobe stores it inverted
            return _decode_jpeg(content, reduction)
    pixels = _decode_any(content)
    if pixels is None or reduction == 1:
        return pixels
    return _average(pixels, reduction)


def judge(content: bytes, image: Described) -> Refusal | None:
    """Why an image file cannot be used as the image that the JSON describes; None if it can."""
    name = f"{shown(image.file_name)} (id {image.id})"
    pixels = decode(content)
    if pixels is None:
        return _unreadable(name, "the file is empty" if not content else _what_fails(content), image.id)
    size = pixels.shape[:2]
    if size == (image.height, image.width):
        return None
    advice = "correct height and width there"
    if size == (image.width, image.height) and _orientation(content) >= 5:
        advice = (
            "the JSON has the size that they are stored with, and their EXIF data turn them: if the annotations fit"
            " the picture as it is stored, take the EXIF orientation out of the files, else correct height and width"
        )
    return Refusal(
        "images whose size (height x width) disagrees with the JSON",
        f"{name} is {size[0]}x{size[1]}, not {image.height}x{image.width}",
        advice,
        image.id,
    )


def examine(folder: Path, images: Sequence[Described]) -> Iterator[Refusal | None]:
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


def absent(folder: Path, file_names: Sequence[str], ids: Sequence[int]) -> list[Refusal]:
    """A refusal for each file that is not in `folder`."""
    images = zip(file_names, ids, strict=True)
    return [_absent(folder, name, image_id) for name, image_id in images if not os.path.isfile(folder / name)]


def _read_and_judge(folder: Path, image: Described) -> Refusal | None:
    try:
        content = (folder / image.file_name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return _absent(folder, image.file_name, image.id)
    except OSError as error:
        return _unreadable(f"{shown(image.file_name)} (id {image.id})", error.strerror or str(error), image.id)
    return judge(content, image)


def _absent(folder: Path, name: str, image_id: int) -> Refusal:
    culprit, advice = f"{shown(name)} (id {image_id})", "add them, or take them out of the JSON"
    return Refusal(f"images that are not in {folder}", culprit, advice, image_id)


def _unreadable(name: str, reason: str, image_id: int) -> Refusal:
    advice = "replace the files, or take the images out of the JSON"
    return Refusal("image files that cannot be read", f"{name}: {reason}", advice, image_id)


def _what_fails(content: bytes) -> str:
    """Why `decode` has nothing to show for a file."""
    return "it cannot be decoded"


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


def _decode_any(content: bytes) -> np.ndarray | None:
    """By Pillow, which notices what is missing, and knows every kind of colour."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            upright = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
            turned = image if upright is None else image.transpose(upright)
            if turned.mode.startswith("I"):  # 16 bits, of which Pillow would keep the lower 8
                grey = np.clip(np.asarray(turned), 0, 0xFFFF) >> 8
                return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            turned.info.pop("transparency", None)  # of which Pillow warns
            return np.array(turned if turned.mode == "RGB" else turned.convert("RGB"))
    except Exception:  # its readers raise whatever they stumble over: OSError, SyntaxError, struct.error, IndexError
        return None


def _average(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """Means over squares of `reduction` pixels; the last row and column are repeated to fill them."""
    height, width = pixels.shape[:2]
    below, right = -height % reduction, -width % reduction
    filled = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = (filled.shape[1] // reduction, filled.shape[0] // reduction)
    return cv2.resize(filled, size, interpolation=cv2.INTER_AREA)


def _orientation(content: bytes) -> int:
    """The EXIF orientation of a file that can be decoded; 1 where it has none."""
    with Image.open(io.BytesIO(content)) as image:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))  # the method of PNG files would decode the pixels

"""What is written of a prediction: pictures, videos, COCO records, a JSON file, a PNG of instance numbers."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.inference.paste import encode_rle
from mrcnn_jax.inference.postprocess import Prediction

_SLOWEST = 0.002  # frames a second: OpenCV takes less for none
_LITTLE = 1 << 24  # bytes of room: a disk that has no more is full
_CODEC = "mp4v"  # MPEG-4: every OpenCV can write it, at 3 ms a frame of 640x480; VP9 takes 130


class Results(AbstractContextManager["Results"]):
    """A JSON list written record by record, so that it may become longer than memory. Whole again when closed."""

    def __init__(self, path: Path):
        self._file: TextIO = path.open("w")
        self._file.write("[")
        self._separator = "\n"

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        for record in records:
            self._file.write(self._separator + json.dumps(record, separators=(",", ":")))
            self._separator = ",\n"

    def __exit__(self, *error: object) -> None:
        self._file.write("\n]\n")
        self._file.close()


class Video(AbstractContextManager["Video"]):
    """An MP4 file of pictures, uint8 RGB of one size, at the nearest rate that such a file can have.

    An odd side loses its last pixel, which the codec wants even. Raises OSError: at the first picture if it cannot be
    written there, at the end if frames are missing.
    """

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, representable_rate(rate)
        self._writer: cv2.VideoWriter | None = None
        self._last: NDArray[np.uint8] | None = None
        self._written = 0

    def write(self, number: int, picture: NDArray[np.uint8]) -> None:
        """The picture of frame `number`, counted from 0. Before a number that is not the next the last is repeated."""
        if self._writer is None:
            self._writer = self._open(picture)
        while self._last is not None and self._written < number:
            self._put(self._last)
        self._last = np.ascontiguousarray(picture[:, :, ::-1])
        self._put(self._last)

    def _open(self, picture: NDArray[np.uint8]) -> cv2.VideoWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        size = (picture.shape[1], picture.shape[0])
        writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*_CODEC), self._rate, size)
        if not writer.isOpened():
            what = f"OpenCV cannot write a video of {size[0]}x{size[1]} pixels, {self._rate:g} a second, there"
            raise OSError(errno.EIO, what, str(self._path))
        return writer

    def _put(self, bgr: NDArray[np.uint8]) -> None:
        assert self._writer is not None
        self._writer.write(bgr)
        self._written += 1

    def __exit__(self, *error: object) -> None:
        if self._writer is None:
            return
        self._writer.release()  # which says nothing of a full disk: so the file is asked
        written = cv2.VideoCapture(str(self._path)).get(cv2.CAP_PROP_FRAME_COUNT)
        if error[0] is None and written != self._written:
            what = f"only {max(int(written), 0)} of {self._written} frames could be written"
            full = shutil.disk_usage(self._path.parent).free < _LITTLE
            raise OSError(errno.ENOSPC if full else errno.EIO, what, str(self._path))


def representable_rate(rate: float) -> float:
    """The frames a second nearest to `rate` that OpenCV and MPEG-4 can state.

    OpenCV makes a fraction over 1, 10, 100 or 1000 of it; in MPEG-4 its numerator, in lowest terms, has 16 bits.
    """
    fractions = (
        (n, base) for base in (1, 10, 100, 1000) for n in range(round(rate * base) - 25, round(rate * base) + 26)
    )
    usable = (n / base for n, base in fractions if n / base >= _SLOWEST and n // math.gcd(n, base) < 2**16)
    return min(usable, key=lambda near: abs(near - rate), default=_SLOWEST)


def write_picture(path: Path, pixels: NDArray[Any]) -> None:
    """RGB or gray pixels in the format that the suffix says."""
    stored = pixels[:, :, ::-1] if pixels.ndim == 3 else pixels
    done, content = cv2.imencode(path.suffix, stored)
    if not done:
        raise OSError(errno.EINVAL, f"a picture of {pixels.shape[1]}x{pixels.shape[0]} has no such file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())


def write_json(path: Path, prediction: Prediction, picture: dict[str, Any]) -> None:
    """One object: what `picture` says of it, its size, and what was found, best first.

    `box` is x0 y0 x1 y1 in pixels, `mask` COCO's compressed run lengths, `keypoints` x y score each.
    """
    height, width = prediction.image_size
    content = {**picture, "height": height, "width": width}
    if prediction.keypoints is not None:
        content["keypoint_names"] = prediction.keypoint_names
    instances = ",".join(f"\n  {json.dumps(instance)}" for instance in _instances(prediction))  # one a line
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{json.dumps(content)[:-1]},\n "instances": [{instances}\n]}}\n')


def _instances(prediction: Prediction) -> list[dict[str, Any]]:
    instances: list[dict[str, Any]] = [
        {
            "name": prediction.names[i],
            "category_id": int(prediction.category_ids[i]),
            "score": float(prediction.scores[i]),
            "box": prediction.boxes[i].tolist(),
        }
        for i in range(len(prediction))
    ]
    for instance, mask in zip(instances, encode_rle(prediction.regions(), prediction.image_size), strict=False):
        instance["mask"] = mask
    if prediction.keypoints is not None:
        for instance, points in zip(instances, prediction.keypoints.tolist(), strict=True):
            instance["keypoints"] = points
    return instances


def instance_numbers(prediction: Prediction) -> NDArray[Any]:
    """(height, width): 0 where nothing is, else the number of an instance, from 1 in their order, which is best first.

    Where masks overlap the better one counts. 8 bits, or 16 when there are more than 255 instances.
    """
    numbers = np.zeros(prediction.image_size, dtype=np.uint8 if len(prediction) < 256 else np.uint16)
    regions = prediction.regions()
    for i in reversed(range(len(regions))):
        pixels, top, left = regions[i]
        numbers[top : top + pixels.shape[0], left : left + pixels.shape[1]][pixels] = i + 1
    return numbers

"""Writers of prediction results: summary, COCO records, JSON files, instance maps, images and videos."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.inference.paste import encode_rle
from mrcnn_jax.inference.postprocess import Prediction

log = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
SUMMARY_FILE = "summary.json"
_MIN_FRAME_RATE = 0.002  # per second: OpenCV treats lower rates as 0
_FULL_DISK_BYTES = 1 << 24  # a disk with less free space counts as full
_CODEC = "mp4v"  # MPEG-4: every OpenCV can write it, at 3 ms a frame of 640x480; VP9 takes 130


@dataclass
class Summary:
    """Counts and failures of a prediction, written as `summary.json`."""

    complete: bool = False
    images: int = 0
    frames: int = 0
    instances: int = 0  # with a score of at least the threshold
    full: int = 0  # images and frames with the maximum number of detections
    failures: list[str] = field(default_factory=list)  # messages about inputs not read and files not written

    def __str__(self) -> str:
        counts = [_counted(n, noun) for n, noun in ((self.images, "image"), (self.frames, "frame")) if n]
        return f"{_counted(self.instances, 'instance')} in {' and '.join(counts) or 'no image'}"

    def add_failure(self, message: str) -> None:
        log.warning("%s", message)
        self.failures.append(message)

    def write(self, folder: Path) -> None:
        (folder / SUMMARY_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


class ResultsWriter(AbstractContextManager["ResultsWriter"]):
    """Writes a JSON list record by record, so that it may exceed memory. The file is valid JSON once closed."""

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


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes uint8 RGB frames of one size to an MP4 file, at the nearest frame rate that the format can represent.

    An odd height or width loses its last pixel, because the codec needs even sizes. Raises OSError at the first frame
    if the file cannot be written, and on exit if frames are missing from it.
    """

    def __init__(self, path: Path, frame_rate: float):
        self._path, self._frame_rate = path, nearest_frame_rate(frame_rate)
        self._writer: cv2.VideoWriter | None = None
        self._last: NDArray[np.uint8] | None = None
        self._num_written = 0

    def write(self, number: int, pixels: NDArray[np.uint8]) -> None:
        """Write frame `number`, counted from 0. Repeats the last frame in place of skipped numbers."""
        self._writer = self._writer or self._open(pixels)
        frame = np.ascontiguousarray(pixels[:, :, ::-1])
        repeated = [] if self._last is None else [self._last] * (number - self._num_written)
        for bgr in (*repeated, frame):
            self._writer.write(bgr)
        self._num_written += len(repeated) + 1
        self._last = frame

    def _open(self, pixels: NDArray[np.uint8]) -> cv2.VideoWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        size = (pixels.shape[1], pixels.shape[0])
        writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*_CODEC), self._frame_rate, size)
        if not writer.isOpened():
            message = f"OpenCV cannot write a video of {size[0]}x{size[1]} pixels at {self._frame_rate:g} frames/s"
            raise OSError(errno.EIO, message, str(self._path))
        return writer

    def __exit__(self, *error: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        # OpenCV reports no write errors, such as a full disk, so count the frames in the file.
        stored = cv2.VideoCapture(str(self._path)).get(cv2.CAP_PROP_FRAME_COUNT)
        if error[0] is None and stored != self._num_written:
            message = f"only {max(int(stored), 0)} of {self._num_written} frames could be written"
            full = shutil.disk_usage(self._path.parent).free < _FULL_DISK_BYTES
            raise OSError(errno.ENOSPC if full else errno.EIO, message, str(self._path))


def nearest_frame_rate(frame_rate: float) -> float:
    """Return the frame rate nearest to `frame_rate` that OpenCV and MPEG-4 can represent.

    OpenCV writes it as a fraction over 1, 10, 100 or 1000, whose reduced numerator MPEG-4 stores in 16 bits.
    """
    near = ((round(frame_rate * base) + k, base) for base in (1, 10, 100, 1000) for k in range(-25, 26))
    usable = (n / base for n, base in near if n / base >= _MIN_FRAME_RATE and n // math.gcd(n, base) < 2**16)
    return min(usable, key=lambda rate: abs(rate - frame_rate), default=_MIN_FRAME_RATE)


def write_image(path: Path, pixels: NDArray[Any]) -> None:
    """Write RGB or gray pixels in the format of the suffix. Raises OSError if the format cannot store them."""
    stored = pixels[:, :, ::-1] if pixels.ndim == 3 else pixels
    success, content = cv2.imencode(path.suffix, stored)
    if not success:
        message = f"an image of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be stored as {path.suffix}"
        raise OSError(errno.EINVAL, message, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())


def write_json(path: Path, prediction: Prediction, image_fields: dict[str, Any]) -> None:
    """Write one JSON object: `image_fields`, the image size and `instances`, highest score first.

    Of an instance, `box` is x0 y0 x1 y1 in pixels, `mask` COCO's compressed RLE, `keypoints` a list of x y score.
    """
    height, width = prediction.image_size
    content = {**image_fields, "height": height, "width": width}
    if prediction.keypoints is not None:
        content["keypoint_names"] = prediction.keypoint_names
    instances = ",".join(f"\n  {json.dumps(instance)}" for instance in _instances(prediction))  # one per line
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{json.dumps(content)[:-1]},\n "instances": [{instances}\n]}}\n')


def _instances(prediction: Prediction) -> Iterator[dict[str, Any]]:
    masks = encode_rle(prediction.regions(), prediction.image_size)  # none without masks
    for i in range(len(prediction)):
        yield {
            "name": prediction.names[i],
            "category_id": int(prediction.category_ids[i]),
            "score": float(prediction.scores[i]),
            "box": prediction.boxes[i].tolist(),
            **({"mask": masks[i]} if masks else {}),
            **({} if prediction.keypoints is None else {"keypoints": prediction.keypoints[i].tolist()}),
        }


def instance_map(prediction: Prediction) -> NDArray[Any]:
    """Return (height, width) instance numbers: 0 for background, then 1, 2, ... by descending score.

    Where masks overlap, the higher score wins. uint8, or uint16 for more than 255 instances.
    """
    numbers = np.zeros(prediction.image_size, dtype=np.uint8 if len(prediction) < 256 else np.uint16)
    regions = prediction.regions()
    for i in reversed(range(len(regions))):
        pixels, top, left = regions[i]
        numbers[top : top + pixels.shape[0], left : left + pixels.shape[1]][pixels] = i + 1
    return numbers

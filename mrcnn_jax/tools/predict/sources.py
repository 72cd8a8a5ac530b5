"""Inputs of a prediction: image files, folders, glob patterns, videos and cameras."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.data import file_names, image_formats
from mrcnn_jax.errors import ImageError, format_list, format_value

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
_DEFAULT_FRAME_RATE = 25.0  # per second, where the file or camera states none


class MediaSource(NamedTuple):
    """An image file, a video file or a camera. The file need not exist; reading it raises the error."""

    kind: Literal["image", "video", "camera"]
    path: str  # as given or found; the number of a camera
    name: str  # of its results: the file name without suffix, with subfolders if a folder was given


def find_sources(inputs: Sequence[str], output: Path) -> tuple[list[MediaSource], list[str]]:
    """Return the sources in the order of `inputs`, and a message for each input that has none.

    An input is a file, a folder (searched recursively, without hidden folders and `output`), a glob pattern, or the
    number of a camera if no file has that name. Files of a folder or pattern are sorted by name. The suffix, else the
    content, decides between image and video. Other files in folders are logged by name; a file given as an input is
    taken as an image.
    """
    sources: list[MediaSource] = []
    messages: list[str] = []
    for given in inputs:
        found: list[MediaSource] = []
        if os.path.lexists(given) or not (given.isdecimal() or "://" in given or glob.has_magic(given)):
            found = _from_path(given, output, messages)
        elif given.isdecimal():
            found = [MediaSource("camera", given, f"camera-{given}")]
        elif "://" in given:
            messages.append(f"{given}: URLs are not supported; save it to a file first (ffmpeg -i URL FILE.mp4)")
        else:
            matches = sorted(glob.glob(given, recursive=True))
            found = [source for match in matches for source in _from_path(match, output, messages)]
        sources += found
        if not found and not any(message.startswith(f"{given}: ") for message in messages):
            messages.append(f"{given}: no image or video found")
    return sources, messages


def _from_path(path: str, output: Path, messages: list[str]) -> list[MediaSource]:
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        messages.append(f"{path}: it is a device or a pipe, not a file; give a camera by its number")
        return []
    if not os.path.isdir(path):
        return [_from_file(path, Path(path).name, _file_kind(Path(path)))]

    def failed(error: OSError) -> None:
        messages.append(f"{error.filename}: {error.strerror}")

    # `output` may be inside the folder: results are not inputs.
    files = sorted(file_names.walk_files(Path(path), without=output, failed=failed))
    kinds = {file: _file_kind(file) for file in files}
    if skipped := [format_value(str(file.relative_to(path))) for file in files if kinds[file] is None]:
        log.info("%s: skipped %d files, neither images nor videos: %s", path, len(skipped), format_list(skipped))
    return [
        _from_file(str(file), str(file.relative_to(path)), kind) for file, kind in kinds.items() if kind is not None
    ]


def _file_kind(file: Path) -> Literal["image", "video"] | None:
    """Kind of a file by its suffix, else by its content; None for other files."""
    suffix = file.suffix.lower()
    if file.exists() and not file.is_file():  # reading a pipe may block forever
        return None
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in image_formats.SUFFIXES:
        return "image"
    try:
        with file.open("rb") as opened:
            return image_formats.detect_kind(opened.read(image_formats.HEADER_BYTES))
    except OSError:
        return None


def _from_file(path: str, name: str, kind: Literal["image", "video"] | None) -> MediaSource:
    return MediaSource(kind or "image", path, name.removesuffix(Path(path).suffix) or name)


class VideoReader(AbstractContextManager["VideoReader"]):
    """Frames of a video file or a camera, read with OpenCV. Raises ImageError if it cannot be opened."""

    def __init__(self, source: MediaSource):
        self.is_camera = source.kind == "camera"
        self.title = f"camera {source.path}" if self.is_camera else source.path
        _silence_opencv()
        self._capture = cv2.VideoCapture(int(source.path) if self.is_camera else source.path)
        if not self._capture.isOpened():
            self._capture.release()
            raise ImageError(f"{self.title}: {_open_error(source)}")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.frame_rate = rate if 0 < rate <= 1000 else _DEFAULT_FRAME_RATE  # per second; also replaces NaN
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames = None if self.is_camera or not 0 < count < 1e9 else int(count)  # as stated; None: unknown

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the number and the RGB pixels (height, width, 3) of every frame.

        Frames of a file are numbered from 0. The number of a camera frame is the time since the first frame, in units
        of 1 / `frame_rate`, so numbers are skipped when frames are processed more slowly than they arrive.
        """
        start, number = None, -1
        while True:
            success, pixels = self._capture.read()
            if not success:
                return
            now = time.monotonic()
            start = now if start is None else start
            number = max(number + 1, int((now - start) * self.frame_rate) if self.is_camera else 0)
            yield number, np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def missing_frames(self, num_read: int) -> str | None:
        """Return an error message if `num_read` is less than the number of frames that the file states, else None.

        One percent less is tolerated, because some formats only estimate the number.
        """
        if self.is_camera:
            return f"{self.title}: no more frames after {num_read}"
        if not num_read:
            return f"{self.title}: none of its frames can be read"
        if self.num_frames is None or num_read >= self.num_frames - max(1, self.num_frames // 100):
            return None
        return f"{self.title}: only the first {num_read} of {self.num_frames} frames can be read"


def _open_error(source: MediaSource) -> str:
    if source.kind == "camera":
        return f"it cannot be opened; check that it is connected and that you may read /dev/video{source.path}"
    if not os.path.exists(source.path):
        return file_names.describe_missing(Path(source.path))
    return "not a video that can be decoded"


def _silence_opencv() -> None:
    """Turn off FFmpeg's and OpenCV's own messages, which name no file, unless the user has set a level."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4 and 5
        set_level(1)  # fatal errors only


def result_names(sources: Iterable[MediaSource], reserved: Iterable[str] = ()) -> list[str]:
    """Return a unique name for the results of each source: its own, with a number appended if that is taken.

    Names are compared without case. A name `a` also reserves `a.mask`, the name of mask files.
    """
    taken = {name.lower() for name in reserved}
    names = []
    for source in sources:
        name, number = source.name, 1
        while {name.lower(), f"{name.lower()}.mask"} & taken:
            number += 1
            name = f"{source.name}-{number}"
        taken |= {name.lower(), f"{name.lower()}.mask"}
        names.append(name)
    return names

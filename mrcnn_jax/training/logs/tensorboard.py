"""TensorBoard event files: metrics as scalars, detections as images."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from etils import epath

from mrcnn_jax.errors import format_error
from mrcnn_jax.training.logs.console import SECONDS_BETWEEN_UPLOADS, MetricSink
from mrcnn_jax.training.memory import PEAK_MEMORY

log = logging.getLogger(__name__)

FOLDER = "tensorboard"  # in the work directory
_MAX_IMAGES = 8  # per evaluation
_MAX_WIDTH = 1600  # pixels; larger images are resized, so that the images of a day take a few megabytes
_TAG_GROUPS = {"images_per_second": "speed", "data_wait_fraction": "speed", PEAK_MEMORY: "memory"}


class TensorBoardSink(MetricSink):
    """Writes scalars and images to workdir/tensorboard.

    Only the constructor raises. Later, an image that cannot be written is logged and skipped; after an error of the
    event file nothing more is written, which is logged once, and the training continues.

    It does not use tensorboardX's SummaryWriter, whose thread ends at the first error (a full disk, for example):
    writing to its full queue then blocks forever.
    """

    def __init__(self, workdir: epath.PathLike, start: int):
        from tensorboardX import event_file_writer, record_writer
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder = str(epath.Path(workdir) / FOLDER)
        record_writer.directory_check(folder)
        self._event, self._summary = Event, Summary
        self._file = event_file_writer.EventsWriter(f"{folder}/events", f".{start}")
        # TensorBoard then drops what an interrupted run wrote after its last checkpoint: those steps are repeated.
        session = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=start + 1, session_log=session))
        self._flushed = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._add(step, tag=_tag(name), simple_value=value)
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_UPLOADS:
            self._with_file(lambda file: file.flush())
            self._flushed = time.monotonic()

    def write_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():  # the names have groups: bbox/AP, validation/loss
            if value != -1:  # a precision without ground truth
                self._add(step, tag=name, simple_value=value)

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        for name in sorted(images)[:_MAX_IMAGES]:
            try:
                content, height, width = _encode_jpeg(images[name])
            except Exception as error:
                log.warning("image %s is not in the TensorBoard files: %s", name, format_error(error))
                continue
            image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
            self._add(step, tag=f"found/{name}", image=image)

    def close(self) -> None:
        self._with_file(lambda file: file.close())

    def _add(self, step: int, **value: Any) -> None:
        summary = self._summary(value=[self._summary.Value(**value)])
        event = self._event(wall_time=time.time(), step=step, summary=summary)
        self._with_file(lambda file: file.write_event(event))

    def _with_file(self, function: Callable[[Any], object]) -> None:
        """Call `function` with the event file; do nothing after an error."""
        if self._file is None:
            return
        try:
            function(self._file)
        except Exception as error:
            log.warning("no more TensorBoard files are written: %s", format_error(error))
            file, self._file = self._file, None
            with suppress(Exception):  # closing may write again
                file.close()


def open_sink(workdir: epath.PathLike, start: int) -> MetricSink:
    """Return a `TensorBoardSink`; or, after printing why there is none, a sink that does nothing."""
    try:
        return TensorBoardSink(workdir, start)
    except Exception as error:
        print(f"no TensorBoard files: {format_error(error)}", flush=True)
        return MetricSink()


def write_final_evaluation(
    workdir: epath.PathLike, step: int, metrics: Mapping[str, float], images: Mapping[str, bytes]
) -> None:
    """Write the metrics and images of the final evaluation, if TensorBoard files can be written."""
    sink = open_sink(workdir, start=step)
    sink.write_evaluation(step, metrics)
    sink.write_images(step, images)
    sink.close()


def _tag(name: str) -> str:
    """Return the tag of a metric: its group and its name."""
    group = "losses" if name.startswith("loss") else _TAG_GROUPS.get(name, "train")
    return f"{group}/{name}"


def _encode_jpeg(image: bytes) -> tuple[bytes, int, int]:
    """Re-encode an image as JPEG of bounded size; return it with its height and width."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None, "the encoded image cannot be decoded"
    height, width = pixels.shape[:2]
    if width > _MAX_WIDTH:
        height, width = max(1, round(height * _MAX_WIDTH / width)), _MAX_WIDTH
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), height, width

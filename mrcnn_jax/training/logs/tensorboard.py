"""What a run writes for TensorBoard: its metrics as curves, what it finds as pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from etils import epath

from mrcnn_jax.errors import described
from mrcnn_jax.training.logs.console import SECONDS_BETWEEN_UPLOADS, Sink
from mrcnn_jax.training.memory import MEMORY

log = logging.getLogger(__name__)

FOLDER = "tensorboard"  # in the workdir
_PICTURES = 8  # at each measurement
_WIDEST = 1600  # pixels of a picture; larger ones are made smaller, so that a day's pictures stay some megabytes
_GROUPS = {"images_per_second": "speed", "data_wait_fraction": "speed", MEMORY: "memory"}


class TensorBoard(Sink):
    """Scalars and pictures in workdir/tensorboard.

    Only the constructor raises. Afterwards a picture that cannot be written is named and left out; where the files
    cannot be written any more, that is logged once and the rest is left out. The training continues.
    Not through tensorboardX's SummaryWriter: its thread ends at the first error, of a full disk for example, and who
    then fills its queue waits for ever.
    """

    def __init__(self, workdir: epath.PathLike, start: int):
        from tensorboardX import event_file_writer, record_writer
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder = str(epath.Path(workdir) / FOLDER)
        record_writer.directory_check(folder)
        self._event, self._summary = Event, Summary
        self._file = event_file_writer.EventsWriter(f"{folder}/events", f".{start}")
        # What an interrupted run wrote after its last checkpoint is purged: those steps come again.
        session = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=start + 1, session_log=session))
        self._written = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._add(step, tag=_tag(name), simple_value=value)
        if time.monotonic() - self._written > SECONDS_BETWEEN_UPLOADS:
            self._do(lambda file: file.flush())
            self._written = time.monotonic()

    def write_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():  # their names have groups: bbox/AP, validation/loss
            if value != -1:  # which says of a precision that there is no such truth
                self._add(step, tag=name, simple_value=value)

    def write_images(self, step: int, pictures: Mapping[str, bytes]) -> None:
        for name in sorted(pictures)[:_PICTURES]:
            try:
                content, height, width = _shrink(pictures[name])
            except Exception as error:
                log.warning("picture %s is not in the TensorBoard files: %s", name, described(error))
                continue
            image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
            self._add(step, tag=f"found/{name}", image=image)

    def close(self) -> None:
        self._do(lambda file: file.close())

    def _add(self, step: int, **value: Any) -> None:
        summary = self._summary(value=[self._summary.Value(**value)])
        event = self._event(wall_time=time.time(), step=step, summary=summary)
        self._do(lambda file: file.write_event(event))

    def _do(self, act: Callable[[Any], object]) -> None:
        """Do something with the file, or nothing any more after an error."""
        if self._file is None:
            return
        try:
            act(self._file)
        except Exception as error:
            log.warning("no more TensorBoard files are written: %s", described(error))
            file, self._file = self._file, None
            with suppress(Exception):  # closing may write once more
                file.close()


def record_measured(
    workdir: epath.PathLike, step: int, metrics: Mapping[str, float], pictures: Mapping[str, bytes]
) -> None:
    """Add what was measured after the last step to the TensorBoard files, where there can be any."""
    try:
        board = TensorBoard(workdir, start=step)
    except ImportError:
        return
    except Exception as error:
        log.warning("no TensorBoard files: %s", described(error))
        return
    board.write_scalars(step, metrics)
    board.write_images(step, pictures)
    board.close()


def _tag(name: str) -> str:
    """Losses, speeds and memory get a group each in TensorBoard."""
    group = "losses" if name.startswith("loss") else _GROUPS.get(name, "train")
    return f"{group}/{name}"


def _shrink(picture: bytes) -> tuple[bytes, int, int]:
    """An encoded picture as JPEG of bounded size; its height and width."""
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None, "what was encoded can be decoded"
    height, width = pixels.shape[:2]
    if width > _WIDEST:
        height, width = max(1, round(height * _WIDEST / width)), _WIDEST
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), height, width

"""Prediction on files, folders, videos and cameras: everything that is asked for is written to one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.errors import DISK_FULL, ConfigError, ImageError, Interrupted
from mrcnn_jax.inference import detector
from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.inference.predictor import Predictor, read_image
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.tools.predict import sources, writers
from mrcnn_jax.tools.predict.signals import Stopping
from mrcnn_jax.tools.predict.sources import Source, VideoReader
from mrcnn_jax.visualize.color_indices import ColorIndices

log = logging.getLogger(__name__)

KINDS = ("overlay", "coco", "json", "mask")
RESULTS = "results.json"
SUMMARY = "summary.json"


class Frame(NamedTuple):
    """One picture to predict on."""

    source: Source
    stem: Path  # its files are called that, with suffixes
    image_id: int
    pixels: NDArray[np.uint8]
    frame: int | None = None  # of a video or camera

    @property
    def about(self) -> dict[str, Any]:
        """What records say of the picture."""
        frame = {} if self.frame is None else {"frame": self.frame}
        return {"image_id": self.image_id, "file_name": self.source.path, **frame}


class Rendered(NamedTuple):
    """What is left to be written in order."""

    shot: Frame
    records: list[dict[str, Any]]
    shown: int  # instances
    full: bool  # as many detections as the model gives of a picture
    picture: NDArray[np.uint8] | None  # of a frame, drawn
    failures: list[str]  # what could not be written


@dataclass
class Outcome:
    """What came of it; `summary.json` in the folder."""

    complete: bool = False
    images: int = 0
    frames: int = 0
    instances: int = 0  # that reached the threshold
    full: int = 0  # images and frames with as many detections as the model gives of one
    failures: list[str] = field(default_factory=list)  # what could not be read or written, each with its name

    def __str__(self) -> str:
        pictures = [f"{count} {what}" for count, what in ((self.images, "images"), (self.frames, "frames")) if count]
        return f"{self.instances} instances in {' and '.join(pictures) or 'no image'}"

    def failed(self, message: str) -> None:
        log.warning("%s", message)
        self.failures.append(message)

    def write(self, folder: Path) -> None:
        (folder / SUMMARY).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def predict_files(
    predict: Predictor,
    inputs: Sequence[str | os.PathLike[str]],
    output: Path,
    *,
    save: Sequence[str] = ("overlay", "coco"),
    threshold: float = 0.5,
    value_range: tuple[float, float] | None = None,
) -> Outcome:
    """Predict on all pictures of `inputs` (see `sources.find`): images first, then each video and camera.

    Writes to `output`, as `save` says, for an input called NAME:
      overlay   NAME.jpg or .png, what scores at least `threshold` drawn on it; of a video NAME.mp4, at its rate
      coco      results.json: COCO result records of all scores, with `file_name`, `category`, and `frame` in a video.
                `image_id` counts the images, then the frames as they are read, from 1
      json      NAME.json, see `writers.write_json`, scores of at least `threshold`; of a video NAME.frames/NUMBER.json
      mask      NAME.mask.png, see `writers.instance_numbers`, of the same instances; NAME.frames/NUMBER.mask.png
    and always summary.json. What cannot be read or written is named in the log and in the outcome; the rest is done.
    `value_range` as for `read_image`.

    The first Ctrl-C or SIGTERM ends the reading; what has been read is finished, and Interrupted is raised. Raises
    ConfigError when a file would be overwritten that is an input, or that no earlier prediction has written, for a
    threshold beyond 0..1, and while another prediction writes to `output`.
    """
    check_arguments(output, threshold)
    check_kinds(predict, save)
    found, nothing = sources.find([os.fspath(given) for given in inputs], output)
    names = sources.names(found, reserved=(Path(RESULTS).stem, Path(SUMMARY).stem))
    _protect(found, names, output, save)
    output.mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(files.try_lock(output)):
            raise ConfigError(f"--output={output}: another prediction is writing there; wait, or choose another folder")
        outcome.write(output)
        for message in nothing:
            outcome.failed(message)
        stopping = stack.enter_context(Stopping())
        stack.callback(outcome.write, output)
        results = stack.enter_context(writers.Results(output / RESULTS)) if "coco" in save else None
        run = _Run(predict, output, save, threshold, value_range, stopping, outcome, results)
        run.everything(list(zip(found, names, strict=True)))
        outcome.complete = stopping.number is None
    if outcome.full:
        log.warning(
            "%d of %d images have as many detections as model.box.max_detections allows; raise it where there are more"
            " objects",
            *(outcome.full, outcome.images + outcome.frames),
        )
    if stopping.number is not None:
        raise Interrupted(stopping.number, f"{outcome} until then; the results are in {output}")
    return outcome


def check_arguments(output: Path, threshold: float) -> None:
    """Raise ConfigError for a folder that cannot be written to, and for what is no score. Needs no model."""
    files.check_output(output, "--output", folder=True)
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold={threshold:g}: scores are from 0 to 1; 50 % is 0.5")


def check_kinds(predict: Predictor, save: Sequence[str]) -> None:
    """Raise ConfigError for what cannot be saved."""
    unknown = [kind for kind in save if kind not in KINDS]
    if unknown or not save:
        raise ConfigError(f"--save={','.join(save)}: give one or more of {', '.join(KINDS)}, with commas between them")
    if "mask" in save and predict.config.model.mask is None:
        raise ConfigError("--save=mask: this model finds boxes only; leave `mask` out")
    if "overlay" in save and importlib.util.find_spec("supervision") is None:
        raise ConfigError("--save=overlay needs the extra `viz` (pip install -e '.[viz]'); or give --save=coco,json")


def _protect(found: Sequence[Source], names: Sequence[str], output: Path, save: Sequence[str]) -> None:
    planned = [output / SUMMARY, *([output / RESULTS] if "coco" in save else [])]
    for source, name in zip(found, names, strict=True):
        planned += _files(source, output / name, save)
    inputs = {os.path.realpath(source.path) for source in found}
    ours = (output / SUMMARY).is_file()
    for path in planned:
        if os.path.realpath(path) in inputs:
            raise ConfigError(f"{path} is an input, and its result would overwrite it: choose another --output")
        if not ours and os.path.lexists(path):
            raise ConfigError(f"{path} is there and no earlier prediction wrote it: choose another --output")


def _files(source: Source, stem: Path, save: Sequence[str]) -> list[Path]:
    """Files of an image, and the film of a video; its frames have a folder of their own."""
    if source.kind != "image":
        return [Path(f"{stem}.mp4")] if "overlay" in save else []
    suffixes = {"overlay": _picture_suffix(source), "json": ".json", "mask": ".mask.png"}
    return [Path(f"{stem}{suffixes[kind]}") for kind in save if kind in suffixes]


def _picture_suffix(source: Source) -> str:
    return ".jpg" if source.path.lower().endswith((".jpg", ".jpeg")) else ".png"


class _Run:
    """The state that images and videos share."""

    def __init__(
        self,
        predict: Predictor,
        output: Path,
        save: Sequence[str],
        threshold: float,
        value_range: tuple[float, float] | None,
        stopping: Stopping,
        outcome: Outcome,
        results: writers.Results | None,
    ):
        self._predict, self._output, self._save = predict, output, save
        self._threshold, self._value_range = threshold, value_range
        self._stopping, self._outcome, self._results = stopping, outcome, results
        self._last_id = 0

    def everything(self, named: Sequence[tuple[Source, str]]) -> None:
        images = [(source, self._output / name) for source, name in named if source.kind == "image"]
        if images:
            self._images(images)
        for source, name in named:
            if source.kind != "image" and self._stopping.number is None:
                try:
                    self._film(source, self._output / name)
                except ImageError as error:
                    self._outcome.failed(str(error))
                except OSError as error:
                    self._outcome.failed(_unwritten(error))

    def _images(self, images: Sequence[tuple[Source, Path]]) -> None:
        failed: list[str] = []

        def shots() -> Iterator[Frame]:
            for source, stem in self._until_stopped(images):
                self._last_id += 1
                try:
                    yield Frame(source, stem, self._last_id, read_image(source.path, self._value_range))
                except ImageError as error:
                    failed.append(str(error))
                    self._outcome.failed(str(error))

        def done() -> Iterator[object]:
            yield from self._made(shots())
            yield from failed  # they count as done

        for made in track(done(), len(images), "images"):
            if isinstance(made, Rendered):
                self._outcome.images += 1
                self._record(made)

    def _film(self, source: Source, stem: Path) -> None:
        with contextlib.ExitStack() as stack:
            film = stack.enter_context(VideoReader(source))
            drawn = "overlay" in self._save
            video = stack.enter_context(writers.Video(Path(f"{stem}.mp4"), film.rate)) if drawn else None
            before = self._last_id
            finished = self._made(self._frames(film, source, stem), ColorIndices())
            for made in track(finished, film.total, f"frames of {film.title}"):
                self._outcome.frames += 1
                self._record(made)
                if video is not None and made.picture is not None:
                    try:
                        video.write(made.shot.frame or 0, made.picture)
                    except OSError as error:
                        self._outcome.failed(_unwritten(error))
                        video = None  # its other results are
            message = film.missing(self._last_id - before)
        if message is not None and self._stopping.number is None:
            self._outcome.failed(message)

    def _frames(self, film: VideoReader, source: Source, stem: Path) -> Iterator[Frame]:
        for number, pixels in self._until_stopped(film.frames()):
            self._last_id += 1
            yield Frame(source, Path(f"{stem}.frames", f"{number:06}"), self._last_id, pixels, number)

    def _until_stopped(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self._stopping.number is not None:
                return
            yield item

    def _record(self, made: Rendered) -> None:
        self._outcome.instances += made.shown
        self._outcome.full += made.full
        for failure in made.failures:
            self._outcome.failed(failure)
        if self._results is not None:
            self._results.add(made.records)

    def _made(self, shots: Iterator[Frame], colors: ColorIndices | None = None) -> Iterator[Rendered]:
        """Predicted, and drawn and written on threads: all that needs no order. Holds a few batches at a time.

        Those of a film come in its order and get `colors`.
        """
        held: dict[int, Frame] = {}

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for order, shot in enumerate(shots):
                held[order] = shot
                yield shot.pixels

        def predicted() -> Iterator[tuple[Frame, Prediction, list[int] | None]]:
            for order, prediction in self._predict.stream(pixels()):
                yield held.pop(order), prediction, None if colors is None else colors.assign(self._shown(prediction))

        return detector.map_on_threads(lambda work: self._finish(*work), predicted(), min(4, os.cpu_count() or 1))

    def _shown(self, prediction: Prediction) -> Prediction:
        return prediction[prediction.scores >= self._threshold]

    def _finish(self, shot: Frame, prediction: Prediction, colors: list[int] | None) -> Rendered:
        shown = self._shown(prediction)
        failures: list[str] = []
        picture = None
        if "json" in self._save:
            with _noted(failures):
                writers.write_json(Path(f"{shot.stem}.json"), shown, shot.about)
        if "mask" in self._save:
            with _noted(failures):
                writers.write_picture(Path(f"{shot.stem}.mask.png"), writers.instance_numbers(shown))
        if "overlay" in self._save:
            with _noted(failures):
                picture = self._draw(shot, shown, colors)
        records = _records(shot, prediction) if "coco" in self._save else []
        # The pixels are let go: what waits to be written may be a few batches.
        return Rendered(shot._replace(pixels=shot.pixels[:0]), records, len(shown), prediction.full, picture, failures)

    def _draw(self, shot: Frame, shown: Prediction, colors: list[int] | None) -> NDArray[np.uint8] | None:
        """The picture of a frame; that of an image is written."""
        from mrcnn_jax import visualize  # here: it needs the packages of the extra `viz`

        picture = visualize.draw(shot.pixels, shown, threshold=self._threshold, colors=colors)
        if shot.frame is not None:
            return picture
        writers.write_picture(Path(f"{shot.stem}{_picture_suffix(shot.source)}"), picture)
        return None


@contextlib.contextmanager
def _noted(failures: list[str]) -> Iterator[None]:
    """Within, a file that cannot be written is noted; a full disk ends the prediction."""
    try:
        yield
    except OSError as error:
        failures.append(_unwritten(error))


def _unwritten(error: OSError) -> str:
    """What to say of a file that could not be written. Raises `error` itself for a full disk."""
    if error.errno in DISK_FULL:
        raise error
    return f"{error.filename}: {error.strerror}; it is not written"


def _records(shot: Frame, prediction: Prediction) -> list[dict[str, Any]]:
    return [
        {**record, **shot.about, "category": name}
        for record, name in zip(prediction.to_coco(shot.image_id), prediction.names, strict=True)
    ]

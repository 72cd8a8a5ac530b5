"""Prediction on files, folders, videos and cameras, with all results in one folder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mrcnn_jax.errors import ConfigError, Interrupted
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.runtime import files
from mrcnn_jax.tools.predict import sources, writers
from mrcnn_jax.tools.predict.pipeline import Pipeline, StopSignal, result_files
from mrcnn_jax.tools.predict.sources import MediaSource
from mrcnn_jax.tools.predict.writers import RESULTS_FILE, SUMMARY_FILE, Summary

log = logging.getLogger(__name__)

OUTPUT_KINDS = ("overlay", "coco", "json", "mask")


def predict_files(
    predict: Predictor,
    inputs: Sequence[str | os.PathLike[str]],
    output: Path,
    *,
    save: Sequence[str] = ("overlay", "coco"),
    threshold: float = 0.5,
    value_range: tuple[float, float] | None = None,
) -> Summary:
    """Predict on all `inputs` (see `sources.find_sources`): first the images, then each video and camera.

    Writes summary.json to `output` and, for an input called NAME, the kinds listed in `save`:
      overlay   NAME.jpg or .png, the image with its instances of at least `threshold`; for a video NAME.mp4
      coco      results.json: COCO result records of all scores, with `file_name`, `category`, and `frame` in a video;
                `image_id` counts the images, then the frames in reading order, from 1
      json      NAME.json, see `writers.write_json`, of the instances of at least `threshold`; for a video
                NAME.frames/NUMBER.json
      mask      NAME.mask.png, see `writers.instance_map`, of the same instances; for a video
                NAME.frames/NUMBER.mask.png
    Files that cannot be read or written are logged and listed in the summary; the rest is done.
    `value_range` as in `read_image`.

    After the first Ctrl-C or SIGTERM no further image is read; those already read are finished, then Interrupted is
    raised. Raises ConfigError if a result would overwrite an input or a file that no earlier prediction wrote, if
    `threshold` is not in 0..1, and if another prediction is writing to `output`.
    """
    check_arguments(output, threshold)
    _check_save(predict, save)
    found, messages = sources.find_sources([os.fspath(given) for given in inputs], output)
    names = sources.result_names(found, reserved=(Path(RESULTS_FILE).stem, Path(SUMMARY_FILE).stem))
    _check_overwriting(found, names, output, save)
    output.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(files.folder_lock(output, wait=False)):
            raise ConfigError(f"--output={output}: another prediction is writing there; wait, or choose another folder")
        summary.write(output)
        for message in messages:
            summary.add_failure(message)
        stop = stack.enter_context(StopSignal())
        stack.callback(summary.write, output)
        results = stack.enter_context(writers.ResultsWriter(output / RESULTS_FILE)) if "coco" in save else None
        pipeline = Pipeline(predict, save, threshold, value_range, stop, summary, results)
        pipeline.run([(source, output / name) for source, name in zip(found, names, strict=True)])
        summary.complete = stop.number is None
    if summary.full:
        limit = "as many detections as model.box.max_detections allows; raise it where there are more objects"
        log.warning("%d of %d images have %s", summary.full, summary.images + summary.frames, limit)
    if stop.number is not None:
        raise Interrupted(stop.number, f"stopped after {summary}; the results are in {output}")
    return summary


def check_arguments(output: Path, threshold: float) -> None:
    """Raise ConfigError if `output` cannot be written to or `threshold` is not a score. Needs no model."""
    files.check_output(output, "--output", folder=True)
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold={threshold:g}: scores are from 0 to 1; 50 % is 0.5")


def _check_save(predict: Predictor, save: Sequence[str]) -> None:
    if not save or not set(save) <= set(OUTPUT_KINDS):
        kinds = ", ".join(OUTPUT_KINDS)
        raise ConfigError(f"--save={','.join(save)}: give one or more of {kinds}, separated by commas")
    if "mask" in save and predict.config.model.mask is None:
        raise ConfigError("--save=mask: this model predicts boxes only; leave `mask` out")


def _check_overwriting(found: Sequence[MediaSource], names: Sequence[str], output: Path, save: Sequence[str]) -> None:
    """Raise ConfigError if a result would overwrite an input or a file that no earlier prediction wrote."""
    planned = [output / SUMMARY_FILE, *([output / RESULTS_FILE] if "coco" in save else [])]
    for source, name in zip(found, names, strict=True):
        # Results of frames have a folder of their own.
        written = result_files(source, output / name) if source.kind == "image" else {"overlay": output / f"{name}.mp4"}
        planned += [path for kind, path in written.items() if kind in save]
    inputs = {os.path.realpath(source.path) for source in found}
    has_summary = (output / SUMMARY_FILE).is_file()
    for path in planned:
        if os.path.realpath(path) in inputs:
            raise ConfigError(f"{path} is an input, and its result would overwrite it: choose another --output")
        if not has_summary and os.path.lexists(path):
            raise ConfigError(f"{path} exists and no earlier prediction wrote it: choose another --output")

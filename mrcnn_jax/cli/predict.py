"""Detect objects in images and videos.

INPUT is an image, a video, a directory (searched recursively), a quoted glob
pattern ("photos/*.jpg"), or the number of a camera, which is read until Ctrl-C.

Formats of --save:
  overlay  each image or video with the detections drawn on it
  coco     results.json: COCO results with the fields `file_name` and `frame`
  json     one file per image with names, scores, boxes, masks and keypoints
  mask     NAME.mask.png per image; the value of a pixel is its instance number

Inputs that cannot be read are reported and skipped; the exit status is then 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.config import apply_overrides
from mrcnn_jax.runtime import compilation_cache


def main(arguments: Sequence[str]) -> int:
    parser = common.make_parser("predict", __doc__, overrides=True)
    inputs = "image, video, directory, glob pattern or camera number"
    common.add(parser, "inputs", "INPUT", inputs, os.path.expanduser, nargs="+")
    common.add_model(parser)
    common.add(parser, "--output", "DIR", "directory for the results (default: %(default)s)", default="results")
    common.add(parser, "--save", "LIST", "comma-separated formats (default: %(default)s)", str, default="overlay,coco")
    score = "minimum score, for all formats except coco (default: %(default)s)"
    common.add(parser, "--threshold", "SCORE", score, float, default=0.5)
    options, overrides = common.parse(parser, arguments)
    if options.workdir and (options.model or options.weights):
        parser.error("--workdir names a second model: give --model=RUN or --model=NAME")
    model = common.model_source(parser, options)
    compilation_cache.enable()
    from mrcnn_jax.inference.predictor import Predictor
    from mrcnn_jax.tools.predict.run import check_arguments, predict_files

    check_arguments(options.output, options.threshold)
    config, variables = model.load()
    predict = Predictor(apply_overrides(config, overrides), variables)
    outcome = predict_files(
        predict,
        options.inputs,
        options.output,
        save=options.save.split(","),
        threshold=options.threshold,
        value_range=predict.config.data.value_range,
    )
    print(f"{outcome}; results are in {options.output}")
    for message in outcome.failures:
        print(f"error: {message}", file=sys.stderr)
    return 1 if outcome.failures else 0

"""Find objects in images.

INPUT is an image, a video, a folder (with its subfolders), a glob pattern in quotes ("photos/*.jpg"), or the number of
a camera, which is read until Ctrl-C.

--save lists what is written, separated by commas:
  overlay  each image with its detections drawn on it; for a video, a video with the same rate and frames
  coco     results.json: COCO result records with the fields `file_name` and `frame`
  json     for each image a file with names, scores, boxes, masks and keypoints
  mask     for each image NAME.mask.png, in which the value of a pixel is the number of its instance
Inputs that cannot be read are reported, and listed again at the end; the exit status is 1 then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.config import apply_overrides
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.runtime.files import user_path


def main(arguments: Sequence[str]) -> int:
    parser = common.make_parser("predict", __doc__, overrides=True)
    parser.add_argument(
        "inputs",
        type=os.path.expanduser,
        nargs="+",
        metavar="INPUT",
        help="images, videos, folders, patterns, a camera",
    )
    common.add_model(parser)
    parser.add_argument("--output", required=True, type=user_path, metavar="DIR", help="directory for all results")
    parser.add_argument("--save", default="overlay,coco", help="overlay,coco (default), json, mask")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score, except for coco (default: 0.5)")
    options, overrides = common.parse(parser, arguments)
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
    print(f"{outcome}; the results are in {options.output}")
    for failed in outcome.failures:
        print(f"error: {failed}", file=sys.stderr)
    return 1 if outcome.failures else 0

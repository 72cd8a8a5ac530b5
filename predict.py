"""Find objects in pictures: `python predict.py --workdir=runs/quickstart INPUT... --output=DIR`.

An INPUT is an image, a video, a folder (searched with its subfolders), a glob pattern in quotes ("photos/*.jpg"), or
the number of a camera, which is read until Ctrl-C. Instead of a run, a peer's weights: `--weights=FILE
--model=maskrcnn_resnet50_fpn` (torchvision) or `--model=mask_rcnn_R_50_FPN` (Detectron2), in exact mode.

`--save` says what is written, with commas between:
  overlay  each picture with what was found drawn on it; of a video another video, with its rate and all its frames
  coco     results.json: COCO result records; `file_name` and `frame` say of which picture
  json     for each picture a file with names, scores, boxes, masks and keypoints
  mask     for each picture a PNG, NAME.mask.png, in which a pixel is the number of its instance
Fields of the model's configuration can be set: --config.eval.flip=True (test-time augmentation), for example.
What cannot be read is named, and named again at the end; the exit status is 1 then, and the rest is done.
"""

from __future__ import annotations

import argparse
import os
import sys

from mrcnn_jax import command_line, compilation_cache
from mrcnn_jax.config import apply_overrides
from mrcnn_jax.paths import user_path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs",
        type=os.path.expanduser,
        nargs="+",
        metavar="INPUT",
        help="images, videos, folders, patterns, a camera",
    )
    command_line.add_model(parser)
    parser.add_argument("--output", required=True, type=user_path, metavar="DIR", help="folder for all that is written")
    parser.add_argument("--save", default="overlay,coco", help="overlay,coco (default), json, mask")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score, but for coco (default 0.5)")
    arguments, overrides = command_line.parse(parser)
    if arguments.workdir and arguments.weights:
        parser.error("--workdir and --weights: one model, please")
    compilation_cache.enable()
    from mrcnn_jax.prediction.run import check_arguments, predict_files
    from mrcnn_jax.predictor import Predictor

    check_arguments(arguments.output, arguments.threshold)
    config, variables = command_line.load_model(parser, arguments)
    predict = Predictor(apply_overrides(config, overrides), variables)
    outcome = predict_files(
        predict,
        arguments.inputs,
        arguments.output,
        save=arguments.save.split(","),
        threshold=arguments.threshold,
        value_range=predict.config.data.value_range,
    )
    print(f"{outcome}; the results are in {arguments.output}")
    for failure in outcome.failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    command_line.run(main)

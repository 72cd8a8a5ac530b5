"""Find objects in images: `python predict.py --workdir=runs/quickstart IMAGE... --output=DIR`.

Instead of a run, a peer's weights: `--weights=FILE --format=detectron2 --model=mask_rcnn_R_50_FPN`, in exact mode.
Writes each image with what was found drawn on it, and results.json: COCO result records, where `image_id` is the
position of the image on the command line (from 1) and `file_name` its path.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mrcnn_jax import command_line, compilation_cache


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    command_line.add_model(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures and results.json")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score that is drawn (default 0.5)")
    arguments = parser.parse_args()
    if arguments.workdir and arguments.weights:
        parser.error("--workdir and --weights: one model, please")
    compilation_cache.enable()
    from mrcnn_jax.predict_files import predict_files
    from mrcnn_jax.predictor import Predictor

    predict = Predictor(*command_line.load_model(parser, arguments))
    failures = predict_files(predict, arguments.images, arguments.output, threshold=arguments.threshold)
    print(f"pictures and results.json are in {arguments.output}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    command_line.run(main)

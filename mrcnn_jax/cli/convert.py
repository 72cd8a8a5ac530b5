"""Convert images with annotations in other formats to COCO JSON.

Nothing is written unless everything can be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.runtime.files import user_path
from mrcnn_jax.tools.convert import categories, cityscapes, mask_folders, voc, writer
from mrcnn_jax.tools.convert.writer import Conversion

_VALUES = (
    "what the values of the masks mean. instances: each value but 0 is one instance. classes: each value but 0 is a"
    " class, and each connected region of it one instance. files: each file in a folder named like the image is one"
    " instance"
)
_CATEGORIES = (
    'names, such as cat,dog for 1 and 2; or a file: .json as {"7": "cat"} or ["cat", "dog"], .txt with lines as'
    " '7 cat' or 'cat'. A value may be a color: {\"#ff0080\": \"cat\"}"
)


def main(arguments: Sequence[str]) -> None:
    options, _ = common.parse(_parser(), arguments)
    writer.output_paths(options.output, options.holdout)  # raises before the work, not after it
    conversion = _read(options)
    contents = writer.build_contents(conversion, options.output, options.holdout, options.seed)
    writer.write_files(contents)
    for line in (*writer.note_lines(conversion.images), *conversion.remarks):
        print(line)
    for path, content in contents.items():
        print(*writer.summary_lines(path, content), sep="\n")
    print("\nNext:", *writer.next_commands(contents, conversion.folder), sep="\n  ")


def _parser() -> argparse.ArgumentParser:
    parser = common.make_parser("convert", __doc__)
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")

    label_masks = formats.add_parser("masks", help="a folder of images and a folder of label masks")
    label_masks.add_argument("images", type=user_path, metavar="IMAGES")
    label_masks.add_argument("masks", type=user_path, metavar="MASKS", help="PNG, TIFF or BMP, named like the images")
    label_masks.add_argument("--values", required=True, choices=("instances", "classes", "files"), help=_VALUES)
    label_masks.add_argument("--categories", help=_CATEGORIES)
    label_masks.add_argument("--ignore", type=_value, help="the value of pixels that are to count for nothing: 255")
    label_masks.add_argument(
        "--suffix", default="", help="what the names of masks have more than those of images: _mask"
    )

    pascal = formats.add_parser("voc", help="PASCAL VOC, and the XML files of labeling tools")
    pascal.add_argument("root", type=user_path, metavar="VOC2012", help="the folder with Annotations/ and JPEGImages/")
    pascal.add_argument("--split", default="", help="a list in ImageSets: train, val, trainval; else every image")
    pascal.add_argument("--boxes", action="store_true", help="leave masks alone, and take images without them too")
    pascal.add_argument("--images", type=user_path, help="the folder of images, where it is another")
    pascal.add_argument("--categories", help="names or a file as for masks; else VOC's, or all in alphabetical order")
    pascal.add_argument("--zero-based", action="store_true", help="boxes are positions, not pixels counted from 1")

    streets = formats.add_parser("cityscapes", help="Cityscapes with its fine annotations")
    streets.add_argument("root", type=user_path, metavar="ROOT", help="the folder with gtFine/ and leftImg8bit/")
    streets.add_argument("--split", default="train", help="train (default) or val")

    for each in (label_masks, pascal, streets):
        each.add_argument(
            "--output",
            type=user_path,
            required=True,
            metavar="FILE.json",
            help="the COCO JSON to write; or a folder for train.json and val.json, with --holdout",
        )
        each.add_argument(
            "--holdout", type=float, default=0.0, metavar="SHARE", help="of images for FILE_val.json (val.json): 0.1"
        )
        each.add_argument("--seed", type=int, default=0, help="another seed holds out other images")
    return parser


def _read(given: argparse.Namespace) -> Conversion:
    if given.format == "cityscapes":
        return cityscapes.convert(given.root, given.split)
    named = categories.parse(given.categories) if given.categories else None
    if given.format == "masks":
        return mask_folders.convert(given.images, given.masks, given.values, named, given.ignore, given.suffix)
    return voc.convert(
        given.root,
        split=given.split,
        boxes=given.boxes,
        images=given.images,
        named=named,
        zero_based=given.zero_based,
    )


def _value(text: str) -> int:
    """Of a pixel: a number, or a color such as #ff0080."""
    return int(text[1:], 16) if text.startswith("#") else int(text)

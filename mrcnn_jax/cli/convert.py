"""Convert annotations in other formats to COCO JSON, or download COCO 2017.

All input is read and checked before anything is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mrcnn_jax.cli import common
from mrcnn_jax.tools.convert import categories, cityscapes, coco2017, mask_folders, voc, writer
from mrcnn_jax.tools.convert.writer import Conversion

Formats: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_READERS: dict[str, Callable[..., Conversion]] = {
    "masks": mask_folders.convert,
    "voc": voc.convert,
    "cityscapes": cityscapes.convert,
}
_VALUES = (
    "meaning of the mask values. instances: each value except 0 is an instance; classes: each value except 0 is a"
    " class, and each connected region of it an instance; files: each file in a directory with the image's name is an"
    " instance"
)
_CATEGORIES = (
    'category names: cat,dog for values 1 and 2; or a file, .json with {"7": "cat"} or ["cat", "dog"], or .txt with'
    " lines '7 cat' or 'cat'. A value can be a color: {\"#ff0080\": \"cat\"}"
)


def main(arguments: Sequence[str]) -> None:
    options, _ = common.parse(_parser(), arguments)
    if options.format == "coco2017":
        coco2017.fetch(options.root, [options.split] if options.split else list(coco2017.IMAGES))
        return
    writer.output_paths(options.output, options.holdout)  # raises ConfigError before the input is read
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
    formats = parser.add_subparsers(dest="format", required=True, title="formats", metavar="FORMAT")
    _add_masks(formats)
    _add_voc(formats)
    _add_cityscapes(formats)
    _add_coco2017(formats)
    return parser


def _add_masks(formats: Formats) -> None:
    text = "directory of images with a directory of label masks"
    parser = formats.add_parser("masks", help=text, description=f"Convert a {text}.")
    common.add(parser, "images", "IMAGES", "directory with the images")
    common.add(parser, "masks", "MASKS", "directory with PNG, TIFF or BMP masks, named like the images")
    parser.add_argument("--values", required=True, choices=("instances", "classes", "files"), help=_VALUES)
    common.add(parser, "--categories", "NAMES", _CATEGORIES, str)
    common.add(parser, "--ignore", "VALUE", "mask value of pixels without a label, such as 255", _parse_value)
    suffix = "suffix of mask names, such as _mask for a_mask.png of image a.jpg (default: none)"
    parser.add_argument("--suffix", default="", help=suffix)
    _add_output(parser)


def _add_voc(formats: Formats) -> None:
    text = "PASCAL VOC, or the VOC XML files of labeling tools"
    parser = formats.add_parser("voc", help=text, description=f"Convert {text}.")
    common.add(parser, "root", "ROOT", "directory with Annotations/ and JPEGImages/, such as VOC2012")
    split = "list in ImageSets: train, val or trainval (default: all images)"
    common.add(parser, "--split", "NAME", split, str, default="")
    parser.add_argument("--boxes", action="store_true", help="convert boxes only, also of images without masks")
    common.add(parser, "--images", "DIR", "directory with the images, if it is another")
    names = "category names or a file, as for masks (default: those of VOC, or all in alphabetical order)"
    common.add(parser, "--categories", "NAMES", names, str)
    zero_based = "box coordinates are positions from 0, as in CVAT and VoTT, not VOC's pixel numbers from 1"
    parser.add_argument("--zero-based", action="store_true", help=zero_based)
    _add_output(parser)


def _add_cityscapes(formats: Formats) -> None:
    text = "Cityscapes with fine annotations"
    parser = formats.add_parser("cityscapes", help=text, description=f"Convert {text}.")
    common.add(parser, "root", "ROOT", "directory with gtFine/ and leftImg8bit/")
    common.add(parser, "--split", "NAME", "train or val (default: %(default)s)", str, default="train")
    _add_output(parser)


def _add_coco2017(formats: Formats) -> None:
    text = "download COCO 2017: the annotations, and the images of one split or both"
    parser = formats.add_parser("coco2017", help=text, description=f"{text[0].upper()}{text[1:]}.")
    common.add(parser, "root", "DIR", "directory for annotations/, val2017/ and train2017/")
    split = "fetch the images of this split only: val (0.8 GB) or train (19 GB)"
    parser.add_argument("--split", choices=coco2017.IMAGES, help=split)


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = "COCO JSON file to write; or, with --holdout, a directory for train.json and val.json"
    common.add(parser, "--output", "FILE.json", output, required=True)
    fraction = "fraction of the images for FILE_val.json (or val.json), such as 0.1 (default: 0)"
    common.add(parser, "--holdout", "FRACTION", fraction, float, default=0.0)
    parser.add_argument("--seed", type=int, default=0, help="seed of the holdout selection (default: %(default)s)")


def _read(options: argparse.Namespace) -> Conversion:
    others = ("format", "output", "holdout", "seed")
    given = {name: value for name, value in vars(options).items() if name not in others}
    if "categories" in given:
        names = given.pop("categories")
        given["named"] = categories.parse(names) if names else None
    return _READERS[options.format](**given)


def _parse_value(text: str) -> int:
    """A mask value: a number, or a color such as #ff0080."""
    return int(text[1:], 16) if text.startswith("#") else int(text)

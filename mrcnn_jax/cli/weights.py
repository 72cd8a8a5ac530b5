"""List and download published weights, or export the weights of a run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.runtime import files
from mrcnn_jax.weights import detectron2_names, torchvision_names, zoo, zoo_files
from mrcnn_jax.weights.io import weight_files

_EXPORT = {"torchvision": torchvision_names.export_state, "detectron2": detectron2_names.export_state}
_HEADINGS = ("name", "source", "license", "MB", "data", "box AP", "mask AP", "keypoint AP", "cached")
_NAMES = """\
Published weights of torchvision and Detectron2. Detectors are models to predict
with (--model=NAME) and to start training from (--config.init=zoo:NAME), backbones
the latter."""


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("weights", __doc__)
    commands = parser.add_subparsers(required=True, title="commands", dest="command", metavar="list|fetch|export")
    commands.add_parser("list", help="print all names, with AP, sizes and licenses", description=_NAMES)
    fetch = commands.add_parser("fetch", help="download weights, for use without a network", description=_NAMES)
    common.add(fetch, "names", "NAME", "name of published weights, as in `mrcnn weights list`", str, nargs="+")
    about = "Export a run's newest checkpoint as a torchvision or Detectron2 state dict."
    export = commands.add_parser("export", help="write a .safetensors or .npz file", description=about)
    common.add(export, "workdir", "RUN", "work directory of a run", os.path.expanduser)
    common.add(export, "file", "FILE", "file to write: .safetensors or .npz", os.path.expanduser)
    export.add_argument("--format", choices=_EXPORT, required=True, help="names and layouts of the tensors")
    options, _ = common.parse(parser, arguments)
    {"list": _list, "fetch": _fetch, "export": _export}[options.command](options)


def _list(_: argparse.Namespace) -> None:
    rows = [_HEADINGS, *map(_row, zoo.ENTRIES)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nOut of scope, because of parts that mrcnn_jax does not have:")
    for part, names in zoo.OUT_OF_SCOPE.items():
        print(f"  {part}: {', '.join(names)}")


def _row(entry: zoo.ZooEntry) -> tuple[str, ...]:
    ap = ("-" if value is None else f"{value:.1f}" for value in (entry.box_ap, entry.mask_ap, entry.keypoint_ap))
    size = f"{entry.megabytes:.0f}"
    cached = "yes" if zoo_files.is_cached(entry) else "no"
    return (entry.name, entry.source, zoo.LICENSES[entry.source], size, entry.data, *ap, cached)


def _fetch(options: argparse.Namespace) -> None:
    for entry in [zoo.find(name) for name in options.names]:
        print(f"{entry.name}: {zoo_files.fetch(entry)}")


def _export(options: argparse.Namespace) -> None:
    from mrcnn_jax.checkpoints.manager import load_variables  # imports orbax, which the other commands do not need

    weight_files.check_suffix(options.file)
    files.check_output(options.file, "FILE", parents=False)
    config, variables = load_variables(options.workdir)
    state = _EXPORT[options.format](variables)
    weight_files.write(options.file, state)
    model = config.model
    print(
        f"{options.file}: {len(state)} tensors with {options.format} names. Input: {model.channel_order} pixels in"
        f" 0..255, mean {model.pixel_mean}, std {model.pixel_std}; stride in the 1x1 convolutions:"
        f" {model.backbone.stride_in_1x1}; epsilon of norms: {model.backbone.norm_eps:g}; classes:"
        f" {dict(zip(model.category_ids, model.category_names, strict=False))}"
    )

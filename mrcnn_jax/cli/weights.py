"""Export a run's newest checkpoint as a torchvision or Detectron2 state dict."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.cli import common
from mrcnn_jax.runtime import files
from mrcnn_jax.weights import detectron2_names, torchvision_names
from mrcnn_jax.weights.io import weight_files

_EXPORT = {"torchvision": torchvision_names.export_state, "detectron2": detectron2_names.export_state}


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("weights", __doc__)
    commands = parser.add_subparsers(required=True, title="commands", metavar="export")
    export = commands.add_parser("export", help="write a .safetensors or .npz file", description=__doc__)
    common.add(export, "workdir", "RUN", "work directory of a run", os.path.expanduser)
    common.add(export, "file", "FILE", "file to write: .safetensors or .npz", os.path.expanduser)
    export.add_argument("--format", choices=_EXPORT, required=True, help="names and layouts of the tensors")
    options, _ = common.parse(parser, arguments)
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

"""`python -m mrcnn_jax.weights export WORKDIR FILE --format=FORMAT`: a run's weights as others name and store them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from mrcnn_jax import command_line, paths
from mrcnn_jax.training.checkpoint import load_variables
from mrcnn_jax.weights import detectron2, files, torchvision

_EXPORT = {"torchvision": torchvision.export_state, "detectron2": detectron2.export_state}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the newest checkpoint of a run of train.py as a state dict, and say what else its user must know."""
    parser = argparse.ArgumentParser(prog="python -m mrcnn_jax.weights", description=main.__doc__)
    commands = parser.add_subparsers(required=True)
    export = commands.add_parser("export", help=main.__doc__)
    export.add_argument("workdir", type=os.path.expanduser, help="folder of a run of train.py")
    export.add_argument("file", type=os.path.expanduser, help="what to write: .safetensors or .npz")
    export.add_argument("--format", choices=_EXPORT, required=True, help="whose names and layouts to use")
    options = parser.parse_args(arguments)
    files.check_name(options.file)
    paths.check_output(options.file, "FILE", parents=False)
    config, variables = load_variables(options.workdir)
    state = _EXPORT[options.format](variables)
    files.write(options.file, state)
    model = config.model
    print(
        f"{options.file}: {len(state)} tensors under {options.format}'s names. The network wants {model.channel_order}"
        f" pixels of 0..255 with mean {model.pixel_mean} and std {model.pixel_std}; stride in the 1x1 convolutions:"
        f" {model.backbone.stride_in_1x1}; epsilon of norms: {model.backbone.norm_eps:g}; classes:"
        f" {dict(zip(model.category_ids, model.category_names, strict=False))}"
    )


if __name__ == "__main__":
    command_line.run(main)

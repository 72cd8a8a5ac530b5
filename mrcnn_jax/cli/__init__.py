"""The command `mrcnn`: one module per subcommand, which parses arguments and prints results."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import mrcnn_jax
from mrcnn_jax.cli import common

COMMANDS = {
    "train": "train a model, or continue an interrupted run",
    "eval": "evaluate a model on a COCO or LVIS dataset",
    "predict": "find objects in images, videos, folders or a camera",
    "check": "check a dataset before training on it",
    "convert": "convert mask images, PASCAL VOC or Cityscapes to COCO JSON",
    "plan": "choose the padded image shapes that waste least on a dataset",
    "report": "write an HTML report of detection results of any program",
    "weights": "export the weights of a run for torchvision or Detectron2",
    "config": "check recipes and list them",
    "replay": "repeat a training step whose loss was not finite",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mrcnn COMMAND ...` with `arguments` (default: those of the process) and return its exit status."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="mrcnn",
        description="Mask R-CNN in JAX: train, evaluate and use instance segmentation models.",
        epilog="\n".join(["commands:", *lines, "", "`mrcnn COMMAND --help` describes a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {mrcnn_jax.__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the command")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
    command = importlib.import_module(f"mrcnn_jax.cli.{chosen.command}")
    return common.run(lambda: command.main(chosen.arguments))

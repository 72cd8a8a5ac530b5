"""The command `mrcnn`: one module per subcommand, which parses its arguments and prints its results."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import mrcnn_jax
from mrcnn_jax.cli import common

COMMANDS = {
    "train": "train a model, or resume a run",
    "eval": "evaluate a model on a COCO or LVIS dataset",
    "predict": "detect objects in images, videos, directories or a camera",
    "serve": "answer HTTP requests with predictions; a page to try a model",
    "check": "check a dataset before training on it",
    "convert": "convert mask images, PASCAL VOC or Cityscapes to COCO JSON, or download COCO 2017",
    "plan": "choose padded image shapes (buckets) for a dataset",
    "report": "write an HTML report of COCO results from any program",
    "export": "write a model into a folder to give away",
    "weights": "list and download published weights; export those of a run",
    "verify": "compare the AP of published weights with the published AP",
    "config": "validate and list recipes",
    "replay": "repeat a training step whose loss was not finite",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `mrcnn COMMAND ...` and return its exit status. `arguments` defaults to `sys.argv[1:]`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="mrcnn",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="Mask R-CNN in JAX: train, evaluate and run instance segmentation models.",
        epilog="\n".join(["commands:", *lines, "", "Run 'mrcnn COMMAND --help' for the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {mrcnn_jax.__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
    command = importlib.import_module(f"mrcnn_jax.cli.{chosen.command}")
    return common.run(lambda: command.main(chosen.arguments))

"""What the commands share: overrides of the configuration, where a model comes from, errors told in one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any

from mrcnn_jax import peer_models
from mrcnn_jax.config import Config, ConfigError
from mrcnn_jax.data.errors import DataError
from mrcnn_jax.weights.errors import WeightsError


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; arguments `--config.a.b=value` come back as overrides `a.b=value`."""
    arguments, rest = parser.parse_known_args()
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument:
            parser.error(f"unknown argument {argument}; fields of the configuration are set by --config.name=value")
    return arguments, [argument.removeprefix("--config.") for argument in rest]


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model a command uses, for `load_model`."""
    parser.add_argument("--workdir", help="folder that train.py wrote")
    parser.add_argument(
        "--checkpoint", metavar="WHICH", default="latest", help="of the run: latest (default), best, or a step"
    )
    parser.add_argument("--weights", metavar="FILE", help="or weights of a peer: .pth, .pkl, .npz or .safetensors")
    parser.add_argument("--format", choices=peer_models.PEERS, help="whose weights they are")
    parser.add_argument(
        "--model", metavar="NAME", help="its name there: maskrcnn_resnet50_fpn, mask_rcnn_R_50_FPN, ..."
    )


def load_model(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, recipe: Config | None = None
) -> tuple[Config, Any]:
    """Configuration and variables of the run, or of the peer's model, which is used in exact mode.

    `recipe` says where the peer's model finds its data. Ends the command when the arguments do not say one model.
    """
    missing = [f"--{name}" for name in ("weights", "format", "model") if getattr(arguments, name) is None]
    if not missing:
        return peer_models.load(arguments.weights, arguments.format, arguments.model, recipe)
    if len(missing) < 3:
        parser.error(f"{' and '.join(missing)} missing: a peer's model needs --weights, --format and --model")
    if arguments.workdir is None:
        parser.error("which model? Give --workdir=RUN, or --weights=FILE --format=PEER --model=NAME")
    from mrcnn_jax.training.checkpoint import load_variables  # here: it needs jax

    return load_variables(arguments.workdir, arguments.checkpoint)


def run(main: Callable[[], int | None]) -> None:
    """Run a command; what the user can mend is said without a traceback, with exit status 2."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mrcnn_jax").setLevel(logging.INFO)
    try:
        status = main()
    except (ConfigError, DataError, WeightsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)

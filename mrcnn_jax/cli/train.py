"""Train a model.

The same command again continues an interrupted run from its last checkpoint; a finished run is evaluated again.
Several processes, on one or many hosts, train together: see docs/scaling.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mrcnn_jax.cli import common
from mrcnn_jax.config import load_config
from mrcnn_jax.distributed import cluster
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.runtime.files import user_path


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("train", __doc__, overrides=True)
    parser.add_argument("--config", type=user_path, required=True, help="recipe: a Python file with get_config()")
    parser.add_argument(
        "--workdir",
        type=os.path.expanduser,
        help="directory for checkpoints, metrics and images (default: runs/ and the name of the recipe)",
    )
    common.add_profile(parser)
    cluster.add_flags(parser)
    options, overrides = common.parse(parser, arguments)
    config = load_config(options.config, overrides)
    compilation_cache.enable()
    from mrcnn_jax.training.parallel import use_cpu_cores
    from mrcnn_jax.training.train import train

    if not common.join(options):
        use_cpu_cores(config.train.batch_size, accumulate=config.train.accumulate)
    train(config, options.workdir or f"runs/{config.name}", profile=options.profile)
